"""Facts of the machine and of the process's environment: variables, memory, cores, software and hardware."""
