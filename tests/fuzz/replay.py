"""Lines of the readers that inputs reach: python -m tests.fuzz.replay TARGET FOLDER ... prints JSON.

Only the bodies of functions count, and those that write files do not.
"""

import ast
import json
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path

import coverage

from tests.fuzz.target import Runner
from tests.fuzz.targets import TARGETS, prepared

# functions and classes that read nothing, or only the names in a folder
OTHERS = {
    "write", "save", "writing", "NewFiles", "NewFolder", "NewArchive", "theirs", "write_manifest", "describe", "keep",
    "folder_name", "append", "remove", "keep_best", "prune", "snapshot_path", "plain", "check_room", "npy",
    "sums_crc32", "BatchReader", "Split", "fitting", "pixels_of", "image_of", "loaded", "channels_last", "bytes_of",
    "encoded", "is_tar", "find_beside", "synset_table", "message_classes", "nodes_of", "chain_nodes", "found_files",
    "batches_in", "refuse_gaps", "transpose_into", "is_url", "read_member", "refuse_pipe", "optional_decoder",
    "reason", "errno_of", "in_folder", "only_subfolder", "files_in", "whole", "imagenet_names", "model_proto",
    "metadata_of", "snapshots", "iteration_of", "newest", "latest", "layers_of_resnet50", "attributes_of",
    "tensors_for", "with_notes", "as_restart", "add_filters", "add_predictions", "add_weights",
}


def lines_of_readers(path: Path, names: set[str]) -> set[int]:
    """Return the numbers of the lines in the functions of a module that read, or in those of these names."""
    lines: set[int] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name in OTHERS:
                continue
            if isinstance(child, ast.FunctionDef) and (not names or child.name in names):
                first = child.body[1] if ast.get_docstring(child) and len(child.body) > 1 else child.body[0]
                lines.update(range(first.lineno, (child.end_lineno or 0) + 1))
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return lines


def main() -> None:
    name, *folders = sys.argv[1:]
    target = TARGETS[name]
    files = [Path(import_module(module.partition(":")[0]).__file__ or "") for module in target.modules]
    measured = coverage.Coverage(data_file=None, include=[str(file) for file in files], config_file=False)
    warnings.simplefilter("ignore")
    with prepared(), tempfile.TemporaryDirectory() as folder:
        runner = Runner(target, Path(folder))
        measured.start()
        for path in sorted(each for given in folders for each in Path(given).iterdir() if each.is_file()):
            runner.fill(path.read_bytes())
            try:
                target.read(runner.path)
            except (Exception, SystemExit):      # findings are those of the fuzzing
                continue
        measured.stop()
    found = {}
    for module, file in zip(target.modules, files, strict=True):
        _, statements, _, missing, _ = measured.analysis2(str(file))
        wanted = lines_of_readers(file, {*filter(None, module.partition(":")[2].split(","))}) & set(statements)
        found[module] = {"lines": sorted(wanted), "missing": sorted(wanted & set(missing))}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
