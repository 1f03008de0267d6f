"""Writing an OpenVINO graph to its two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from nemotron_core.openvino import openvino

DECOMPRESSED = "decompressed"
"""Suffix of the name of a conversion that widens a stored weight."""


def save_graph(model: Any, path: Path) -> None:
    """Write the graph to `path`, an .xml file, and its weights to the .bin file beside it.

    When the plug-in loads a graph, it folds each conversion of a constant and then keeps the wide
    copy beside the packed copy with which it computes. It does not if the conversion is marked as a
    decompression. OpenVINO's Python API cannot set this mark, so it is written into the file.
    """
    openvino.save_model(model, path, compress_to_fp16=False)
    tree = Xml.parse(path)  # noqa: S314  # written just now, by the line before
    for layer in tree.iterfind("layers/layer"):
        if layer.get("type") == "Convert" and layer.get("name", "").endswith(DECOMPRESSED):
            info = Xml.Element("rt_info")
            Xml.SubElement(info, "attribute", name="decompression", version="0")
            layer.insert(1, info)  # the schema's order: data, rt_info, input, output
    tree.write(path, encoding="utf-8", xml_declaration=True)
