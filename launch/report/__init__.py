"""The page of `launch report`: runs as one HTML file that needs nothing but a browser.

`facts` reads the files of a run, all else is pure: `history`, `evaluation`, `compare` and `comparison` derive
what the page shows, `curves`, `series` and `chart` compute the charts, and `page` fills the templates with all that.
"""
