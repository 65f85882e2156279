"""launch: the command line of trainlaunch."""
