"""The sweep file: its form, and the runs that it stands for."""
