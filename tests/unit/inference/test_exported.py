"""Which two files make an exported model, and what they say of themselves."""

import shutil

import pytest

from tests.references.exports import LABELS
from vpexp.errors import CheckpointError
from vpexp.inference.exported import ExportedModel, find_exported, is_exported_reference, read_metadata

PARTS = ("image_encoder", "decoder")


def write_files(folder, name="exported_model", suffixes=(".xml", ".bin"), parts=PARTS):
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for suffix in suffixes:
            (folder / f"{name}_{part}{suffix}").write_bytes(b"x" * 1000)
    return folder


def copy_model(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for file in model.files:
        shutil.copy(file, folder)
    return find_exported(folder)


@pytest.fixture
def ir(debug_ir, tmp_path):
    """A copy that a test may damage."""
    return copy_model(debug_ir, tmp_path / "ir")


def test_find_exported__folder_or_any_file(tmp_path):
    folder = write_files(tmp_path)
    expected = ExportedModel(
        folder / "exported_model_image_encoder.xml", folder / "exported_model_decoder.xml", "openvino"
    )
    for path in (folder, *folder.iterdir()):
        assert find_exported(path) == expected
    assert (expected.folder, expected.is_quantized, expected.size_mb) == (folder, False, 0.004)
    assert set(expected.files) == set(folder.iterdir())


def test_find_exported__onnx(tmp_path):
    folder = write_files(tmp_path, suffixes=(".onnx",))
    for path in (folder, *folder.iterdir()):
        model = find_exported(path)
        assert model.format == "onnx"
        assert model.size_mb == 0.002


def test_find_exported__quantized_and_other_names(tmp_path):
    assert find_exported(write_files(tmp_path / "a", "optimized_model")).is_quantized
    assert not find_exported(write_files(tmp_path / "b", "my.model v2")).is_quantized


def test_find_exported__home_relative_and_links(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "run")
    (tmp_path / "latest").symlink_to(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "latest", tmp_path / "latest/exported_model_decoder.xml", tmp_path / "run"):
        relative = path.relative_to(tmp_path)
        for given in (path, relative, f"~/{relative}"):
            assert find_exported(type(path)(given)).decoder == folder / "exported_model_decoder.xml"


def test_find_exported__links_to_files_in_a_store(tmp_path):
    """Caches keep files under names of their own, and link to them."""
    store, folder = write_files(tmp_path / "store"), tmp_path / "model"
    folder.mkdir()
    for number, file in enumerate(sorted(store.iterdir())):
        (folder / file.name).symlink_to(file.rename(store / str(number)))
    for path in (folder, folder / "exported_model_decoder.xml", folder / "exported_model_image_encoder.bin"):
        model = find_exported(path)
        assert model.decoder == folder / "exported_model_decoder.xml"
        assert model.size_mb == 0.004


@pytest.mark.parametrize("missing", ["image_encoder.xml", "image_encoder.bin", "decoder.xml", "decoder.bin"])
def test_find_exported__missing_file_is_named(tmp_path, missing):
    folder = write_files(tmp_path)
    (folder / f"exported_model_{missing}").unlink()
    with pytest.raises(CheckpointError, match=rf"exported_model_{missing} is missing: an exported model needs "):
        find_exported(folder)


@pytest.mark.parametrize(
    ("second", "suffixes"), [("optimized_model", (".xml", ".bin")), ("exported_model", (".onnx",))]
)
def test_find_exported__several_models_in_a_folder(tmp_path, second, suffixes):
    folder = write_files(write_files(tmp_path), second, suffixes)
    with pytest.raises(CheckpointError, match="holds several exported models: name one of exported_model_decoder"):
        find_exported(folder)
    model = find_exported(folder / f"{second}_decoder{suffixes[0]}")
    assert model.encoder == folder / f"{second}_image_encoder{suffixes[0]}"


def test_find_exported__what_is_none(tmp_path):
    with pytest.raises(CheckpointError, match="holds no exported model"):
        find_exported(tmp_path)
    with pytest.raises(CheckpointError, match=r"a_decoder\.xml does not exist"):
        find_exported(tmp_path / "a_decoder.xml")
    for name in ("model.xml", "exported_model_decoder.txt", "decoder.xml"):
        (tmp_path / name).touch()
        with pytest.raises(CheckpointError, match="is no part of an exported model: its name must end with"):
            find_exported(tmp_path / name)


def test_is_exported_reference(tmp_path):
    folder = write_files(tmp_path / "export")
    (tmp_path / "train/checkpoints").mkdir(parents=True)
    assert is_exported_reference(folder)
    assert all(is_exported_reference(file) for file in folder.iterdir())
    assert is_exported_reference(tmp_path / "not_there.onnx")
    assert not any(map(is_exported_reference, (tmp_path, tmp_path / "train", tmp_path / "a.ckpt", tmp_path / "latest")))


def test_read_metadata__both_formats(debug_ir, debug_onnx):
    from_ir, from_onnx = read_metadata(debug_ir), read_metadata(debug_onnx)
    assert from_ir == from_onnx
    assert (from_ir.labels, from_ir.image_size, from_ir.precision) == (LABELS, 64, "FP32")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"\x00\x01\x02\xff",
        b"<net><layers>",
        b'<?xml version="1.0" encoding="klingon"?><net/>',
        b'<?xml version="1.0" encoding="utf-16"?><net/>',
        b'<?xml version="1.0" encoding="utf-7"?><net/>',
        "<net>é</net>".encode("latin-1"),
    ],
)
@pytest.mark.parametrize("part", PARTS)
def test_read_metadata__damaged_ir(ir, content, part):
    file = ir.decoder if part == "decoder" else ir.encoder
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{part}.xml cannot be read as an OpenVINO IR") as error:
        read_metadata(ir)
    assert "\n" not in str(error.value)


def test_read_metadata__cut_off(ir):
    ir.decoder.write_bytes(ir.decoder.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"decoder\.xml cannot be read as an OpenVINO IR"):
        read_metadata(ir)


def test_read_metadata__foreign_ir(ir):
    ir.encoder.write_text("<net><rt_info><model_info><model_type value='YOLO'/></model_info></rt_info></net>")
    with pytest.raises(CheckpointError, match="is no image encoder of vpexp: its model_type is YOLO"):
        read_metadata(ir)
    ir.encoder.write_text("<net/>")
    with pytest.raises(CheckpointError, match="its model_type is not given"):
        read_metadata(ir)


def test_read_metadata__parts_swapped(ir, tmp_path):
    aside = tmp_path / "aside.xml"
    ir.encoder.rename(aside)
    ir.decoder.rename(ir.encoder)
    aside.rename(ir.decoder)
    with pytest.raises(CheckpointError, match="is no image encoder of vpexp: its model_type is sam_decoder"):
        read_metadata(ir)


def test_read_metadata__parts_of_different_exports(ir, micro_ir):
    shutil.copy(micro_ir.encoder, ir.encoder)
    with pytest.raises(CheckpointError, match=r"exported_model_image_encoder\.xml and .* come from different exports"):
        read_metadata(ir)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", "large"),
        ("label_names", "a b"),
        ("label_names", "5"),
        ("label_names", "null"),
        ("source_hash", None),
    ],
)
def test_read_metadata__changed_entry_is_named(ir, key, value):
    lines = ir.decoder.read_text().splitlines()
    (line,) = [number for number, text in enumerate(lines) if f"<{key} value=" in text]
    lines[line] = "" if value is None else f'<{key} value="{value}" />'
    ir.decoder.write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match="was not written by vpexp, or changed since"):
        read_metadata(ir)


def test_read_metadata__damaged_onnx(debug_onnx, tmp_path):
    model = copy_model(debug_onnx, tmp_path)
    model.decoder.write_bytes(model.decoder.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"decoder\.onnx cannot be read by onnxruntime") as error:
        read_metadata(model)
    assert "\n" not in str(error.value)
