"""Metadata of the package; the tools are set up in pyproject.toml.

The ranges below are what is allowed; README's Limits say what was tested. The exact versions that
experiments are reproduced with are in requirements.lock, which `make lock` resolves from these.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
[VERSION] = re.findall(r'^__version__ = "(.+)"$', (ROOT / "qrnn/__init__.py").read_text(), re.M)
README = ROOT / "README.md"
HOOK = ["qrnn/startup/qrnn_startup.py", "qrnn/startup/qrnn_startup.pth"]

EXTRAS = {
    "cpu": ["numba>=0.68,<0.69"],
    # What allennlp 2.10.1 imports. It is not in the list itself, because its metadata asks for
    # torch < 1.13 and pip refuses that: pip install --no-deps allennlp==2.10.1
    "allennlp": [
        "base58>=2.1,<3",
        "cached-path>=1.8,<2",
        "dill>=0.4,<0.5",
        "fairscale>=0.4.13,<0.5",
        "filelock>=3.32,<4",
        "h5py>=3.16,<4",
        "huggingface_hub>=0.36,<2",
        "jsonnet>=0.22,<0.23",
        "lmdb>=3,<4",
        "matplotlib>=3.11,<4",
        "more-itertools>=11.2,<12",
        "nltk>=3.10,<4",
        "numpy>=2.4,<3",
        "requests>=2.34,<3",
        "scikit-learn>=1.9,<2",
        "scipy>=1.17,<2",
        "spacy>=3.8,<3.9",
        "tensorboardX>=2.6,<3",
        "termcolor>=3.3,<4",
        "tokenizers>=0.21,<0.24",
        "tqdm>=4.70,<5",
        "transformers>=4.49,<6",
    ],
    # joeynmt imports importlib_metadata without declaring it; a newer sentencepiece breaks its
    # tokenizer.
    "joeynmt": ["importlib_metadata>=8,<11", "joeynmt==2.3.0", "sentencepiece<=0.2.1"],
    "onnx": ["onnx>=1.17,<2", "onnxruntime>=1.26,<2", "onnxscript>=0.7,<0.8"],
    "cuda12": ["cupy-cuda12x"],
    "cuda13": ["cupy-cuda13x"],
    "test": [
        "hypothesis>=6.170,<7",
        "mypy>=2.4,<3",
        "pytest>=9.2,<10",
        "ruff>=0.17,<0.18",
        "selenium>=4.51,<5",
        "setuptools>=77",
    ],
    "docs": ["pdoc>=16,<17"],
    # What the scripts need: downloads, vectors, plots.
    "scripts": [
        "gensim>=4.4,<5",
        "matplotlib>=3.11,<4",
        "pyarrow>=26,<27",
        "requests>=2.34,<3",
        "scipy>=1.17,<2",
        "tqdm>=4.70,<5",
    ],
    # Other projects' kernels to be measured against, on a GPU.
    "bench": ["accelerated-scan", "fla-core"],
}


class BuildWithHook(build_py):
    """Puts the start-up hook beside the packages, at the root of site-packages.

    Python reads .pth files nowhere else, and setuptools has no option for it that editable installs
    keep: package_data cannot leave its package, and editable wheels drop data_files.
    """

    def run(self) -> None:
        super().run()
        # An editable wheel takes nothing from build_lib, but what is "installed" into it.
        install = self.get_finalized_command("install")
        root = install.install_lib if self.editable_mode else self.build_lib
        self.mkpath(root)
        for file in HOOK:
            self.copy_file(file, root)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *HOOK]


setup(
    name="qrnn",
    version=VERSION,
    description="Quasi-recurrent neural networks for PyTorch, AllenNLP and JoeyNMT",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="the qrnn authors",
    license_expression="BSD-3-Clause",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.15",
    packages=find_packages(include=["qrnn", "qrnn.*"]),
    package_data={"qrnn": ["py.typed"], "qrnn.pooling": ["*.cu"]},
    cmdclass={"build_py": BuildWithHook},
    install_requires=["torch>=2.11,<2.16"],
    extras_require=EXTRAS,
)
