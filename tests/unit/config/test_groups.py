from vpexp.config.groups import find_conf_folder, find_file, list_groups


def test_find_conf_folder__holds_the_main_configuration():
    assert (find_conf_folder() / "config.yaml").is_file()
    assert find_conf_folder().is_absolute()


def test_list_groups__later_folders_add_and_earlier_ones_win(tmp_path):
    for name in ("coco", "mine"):
        file = tmp_path / "data" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("format: coco\n")
    (tmp_path / "loose.yaml").write_text("no group\n")

    options = list_groups([find_conf_folder(), tmp_path])["data"]

    assert options["mine"] == tmp_path / "data" / "mine.yaml"
    assert options["coco"] == find_conf_folder() / "data" / "coco.yaml"
    assert "loose" not in options


def test_find_file__option_main_configuration_and_nothing():
    folder = find_conf_folder()

    assert find_file("data/coco", [folder]) == folder / "data" / "coco.yaml"
    assert find_file("config", [folder]) == folder / "config.yaml"
    assert find_file("data/nope", [folder]) is None
