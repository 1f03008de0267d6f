"""An OpenVINO graph as its two files, with what its Python API cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from nemotron_core.openvino import openvino

DECOMPRESSED = "decompressed"
"""End of the name of a conversion that widens a stored weight."""


def save_graph(model: Any, path: Path) -> None:
    """Write `path`, an .xml, and the weights beside it.

    The plug-in folds a conversion of a constant when it loads the graph, and then keeps the wide
    copy beside the packed one that it computes with. Not so if the conversion is marked as
    decompression, which in Python only the file can be.
    """
    openvino.save_model(model, path, compress_to_fp16=False)
    tree = Xml.parse(path)  # noqa: S314  # written just now, by the line before
    for layer in tree.iterfind("layers/layer"):
        if layer.get("type") == "Convert" and layer.get("name", "").endswith(DECOMPRESSED):
            info = Xml.Element("rt_info")
            Xml.SubElement(info, "attribute", name="decompression", version="0")
            layer.insert(1, info)  # the schema's order: data, rt_info, input, output
    tree.write(path, encoding="utf-8", xml_declaration=True)
