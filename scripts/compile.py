"""Compiles the hot path with mypyc and a C compiler: compile.py [FOLDER]

`rustunnel_py/compiled.py` says what and how it is found. FOLDER is where the result goes, by default the folder of the
installed packages of the Python that runs this. Nothing is fetched: mypyc comes with mypy, the compiler and Python's
headers are the machine's. Ends with one line and code 1 where something is missing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
os.environ["RUSTUNNEL_COMPILED"] = "no"
sys.path.insert(0, str(ROOT))

from rustunnel_py import compiled  # noqa: E402

# As Python itself is compiled, where it matters to its headers. The warnings would be about generated C.
FLAGS = ["-O2", "-g0", "-DNDEBUG", "-fwrapv", "-fvisibility=hidden", "-w"]


def fail(why: str) -> NoReturn:
    sys.exit(f"not compiled: {why} (everything works without it, only slower)")


def compiler() -> list[str]:
    """The command that compiles for this Python, with its flags."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        command = ["cc"]
    if shutil.which(command[0]) is None:
        fail("there is no C compiler here; Debian and Ubuntu have it in the package gcc")
    include = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(include, "Python.h")):
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        fail(f"Python's headers are missing; Debian and Ubuntu have them in the package python{version}-dev")
    return [*command, *FLAGS, "-fPIC", f"-I{include}"]


def translate(target: Path) -> tuple[list[Path], list[str]]:
    """Write C files into `target`. Returns them, and the sources that took part, relative to the package.

    What `mypyc.build` does, which cannot be imported without setuptools.
    """
    try:
        from mypy.errors import CompileError
        from mypy.fscache import FileSystemCache
        from mypy.main import process_options
        from mypyc.codegen import emitmodule
        from mypyc.common import RUNTIME_C_FILES
        from mypyc.errors import Errors
        from mypyc.namegen import exported_name
        from mypyc.options import CompilerOptions
    except ImportError:
        fail("mypy is not installed here; `make compile` installs it")
    package = Path(compiled.PACKAGE)
    paths = [str(package / (module.replace(".", "/") + ".py")) for module in compiled.MODULES]
    cache = FileSystemCache()
    sources, options = process_options([*paths, "--no-incremental"], fscache=cache, mypyc=True)
    options.python_version = (sys.version_info[0], sys.version_info[1])
    options.export_types = options.preserve_asts = True
    options.incremental = False
    for source in sources:
        options.per_module_options.setdefault(source.module, {})["mypyc"] = True
    group = compiled.LIBRARY.removesuffix("__mypyc")
    groups: emitmodule.Groups = [(sorted(sources, key=lambda source: source.module), group)]
    settings = CompilerOptions(multi_file=True, target_dir=str(target), group_name=group)
    try:
        result = emitmodule.parse_and_typecheck(sources, options, settings, groups, cache)
    except CompileError as error:
        fail("\n".join(["mypy is not content:", *error.messages]))
    errors = Errors(options)
    modules, contents, _ = emitmodule.compile_modules_to_c(
        result, compiler_options=settings, errors=errors, groups=groups
    )
    if errors.num_errors:
        fail("\n".join(["mypyc is not content:", *errors.new_messages()]))
    (files,) = contents  # of the one group
    for name, content in files:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    written = [target / name for name, _ in files if name.endswith(".c")]
    runtime = Path(emitmodule.__file__).parent.parent / "lib-rt"
    written += [runtime / name for name in RUNTIME_C_FILES]
    written += [runtime / part.path for part in emitmodule.collect_source_dependencies(modules)]
    shim = (runtime / "module_shim.tmpl").read_text("utf-8")
    for module in compiled.MODULES:
        full = f"{compiled.__package__}.{module}"
        name = module.rpartition(".")[2]
        text = shim.format(modname=name, libname=compiled.LIBRARY, full_modname=exported_name(full))
        path = target / f"start_{name}.c"
        # All of them are in one library, and it is no package.
        path.write_text(text.replace("PyInit___init__", f"PyInit_{name}___init__"), "utf-8")
        written.append(path)
    result.manager.metastore.close()
    inside = f"{compiled.__package__}."
    read = [state.xpath for name, state in result.graph.items() if f"{name}.".startswith(inside)]
    return written, sorted(Path(os.path.relpath(path, package)).as_posix() for path in read)


def build(command: list[str], files: list[Path], target: Path, extension: Path) -> None:
    runtime = next(path.parent for path in files if path.parent.name == "lib-rt")

    def one(path: Path) -> Path:
        built = target / f"{path.relative_to(path.anchor).as_posix().replace('/', '_')}.o"
        run([*command, f"-I{target}", f"-I{runtime}", "-c", str(path), "-o", str(built)])
        return built

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(one, files))
    link = ["-dynamiclib", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    run([*command, *link, *map(str, objects), "-o", str(extension)])


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        fail(f"{command[0]} failed:\n{done.stderr[-2000:]}")


def check(folder: Path) -> None:
    """Load all of it in another process."""
    names = [f"{compiled.__package__}.{module}" for module in compiled.MODULES]
    environment = {**os.environ, "RUSTUNNEL_COMPILED": "must", "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    run([sys.executable, "-c", f"import {', '.join(names)}"], environment)


def main() -> None:
    command = compiler()
    os.chdir(ROOT)  # mypy's settings are here
    began = time.time()
    print("compiling the hot path, about a minute", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="rustunnel-compile-") as scratch:
        files, sources = translate(Path(scratch))
        sums = [f"{compiled.sum_of(path)} {path}" for path in sources]
        if any((Path(compiled.PACKAGE) / path).stat().st_mtime > began for path in sources):
            fail("a source was changed meanwhile")
        made = Path(scratch) / "made" / compiled.FOLDER
        made.mkdir(parents=True)
        built = made / f"hot{sysconfig.get_config_var('EXT_SUFFIX')}"
        build(command, files, Path(scratch), built)
        (made / compiled.SOURCES).write_text("\n".join([built.name, *sums, ""]), "utf-8")
        check(made.parent)
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("platlib")) / compiled.FOLDER
        fresh = folder.with_name(f"{folder.name}.fresh")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(made, fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)  # so that nobody finds half of it
    print(f"{len(compiled.MODULES)} modules are in {folder}")


if __name__ == "__main__":
    main()
