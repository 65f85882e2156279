"""The page of `launch report`: runs as one HTML file that needs nothing but a browser.

`facts` reads the files of a run; all the rest is pure: `history`, `evaluation`, `compare` say what the facts mean,
`series` and `chart` draw, the others put it into words and tables, and `page` puts it all together.
"""
