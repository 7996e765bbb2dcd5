"""The commands of python -m alexnet, one module each: configure(parser), run(options) -> exit status.

The module of a command is imported only when the command runs, so that predict does not import matplotlib.
"""

COMMANDS = {                                     # name -> description in the list of commands
    "summary": "layers, shapes, parameters and multiply-adds of a network",
    "plot": "draw the learning curves, time and filters of one run or several",
    "evaluate": "cost, top-1 and top-5 error of trained weights on a data set or a folder of images",
    "predict": "the most probable classes of images",
    "export": "write trained weights as safetensors, ONNX or theano_alexnet's files",
}
