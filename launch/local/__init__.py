"""Starting and supervising ranks on this machine."""
