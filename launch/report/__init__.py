"""The page of `launch report`: runs as one HTML file that needs nothing but a browser.

`facts` reads the files of a run and derives what they say; `comparison` sets several runs side by side; `charts`
computes the curves; `page` fills the templates with all that. Only `facts` reads files, and only `page` writes one.
"""
