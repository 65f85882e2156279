"""What a start needs: the command and its environment, the number of processes, the network."""
