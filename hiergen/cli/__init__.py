"""The verbs of the command line, each in a module of its name: parse a dataclass, call the library, print."""
