"""An index to look at in a browser: which page is where (``pages``), and what serves them to this machine alone."""
