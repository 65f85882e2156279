"""Many runs from one file: what they are (grid), here one after another (local), what came out (results)."""
