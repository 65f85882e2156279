"""The processes of this machine that train: started, watched and ended."""
