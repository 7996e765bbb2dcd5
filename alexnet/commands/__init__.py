"""The commands of python -m alexnet. Each module without a leading underscore is a command: configure(), run().

The first line of a module's docstring describes the command in the list of commands.
"""
