from vpexp.config.groups import find_conf_folder, format_help, list_groups


def test_format_help__names_every_group_and_option_with_what_it_is():
    text = format_help([find_conf_folder()])

    for group, options in list_groups([find_conf_folder()]).items():
        assert f"\n  {group}\n" in text
        for option in options:
            line = next(line for line in text.splitlines() if line.startswith(f"    {option} "))
            assert len(line.split(maxsplit=1)[1]) > 3, line
    assert all(len(line) <= 120 for line in text.splitlines())


def test_format_help__shows_groups_of_the_user(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(
        "# @package data\n# My vineyard: python -m vpexp data=mine\nformat: coco\n"
    )
    (tmp_path / "data" / "bare.yaml").write_text("format: coco\n")

    lines = [line.split() for line in format_help([find_conf_folder(), tmp_path]).splitlines()]

    assert ["mine", "My", "vineyard"] in lines
    assert ["bare"] in lines
