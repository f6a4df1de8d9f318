"""A report of result files: one page, built once, rendered to HTML and to Markdown.

`inputs` reads the files, each further file makes a section of them, `build` puts these together as
a `page`, `render` writes it down. What a file says is text to be escaped, never markup.
"""
