"""The web demo: the page, the models that it shows, and its tabs; gradio is imported only where the page is built."""
