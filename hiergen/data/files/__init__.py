"""Files that several media read alike: folders of a class each, archives of NumPy, and what a file held when it was first seen."""
