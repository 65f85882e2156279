"""How fast each rank computes, with the time left out in which it waits for others, and which ranks are slow."""
