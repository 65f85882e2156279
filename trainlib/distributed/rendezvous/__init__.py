"""Where machines and ranks find each other before the first step: agent, secret and torch's rendezvous handler."""
