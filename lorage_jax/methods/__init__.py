"""One file per method of specialising an edge; `methods.method` holds the protocol and registry."""
