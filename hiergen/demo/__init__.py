"""The web demo: one file per tab, each plain functions with a thin page on top; gradio is imported only where the page is built."""
