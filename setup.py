"""Builds the compiled parts from ext/; everything else about the package is in pyproject.toml."""

from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

WARNINGS = ["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]
# Cython finds changed .pyx and .pxd by itself; the rest is named here.
PARTS = sorted(glob("ext/*.h") + glob("ext/*.pxi"))

CORE = "fork p11_load hot hot_asym soft soft_private hash mac padding secret wrap xaes"

extensions = [
    Extension(
        "kmscore.custody._p11",
        ["ext/_p11.pyx", *(f"ext/{part}.c" for part in CORE.split())],
        include_dirs=["ext"],
        depends=PARTS,
        libraries=["crypto"],
        extra_compile_args=WARNINGS,
    ),
    Extension("kmscore.store._gate", ["ext/_gate.pyx", "ext/fork.c"], include_dirs=["ext"], depends=PARTS, extra_compile_args=WARNINGS),
    Extension("kmscore._percent", ["ext/_percent.pyx"], extra_compile_args=WARNINGS),
    Extension("kmscore.api._nonces", ["ext/_nonces.pyx"], extra_compile_args=WARNINGS),
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        build_dir="build",
        compiler_directives={"language_level": 3, "embedsignature": True},
    )
)
