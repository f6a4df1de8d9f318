"""Methods of specialising an edge, one file each; `method.py` has their protocol and registry."""
