"""What the server answers: to its page, to mistakes, and to strangers."""

import json
import socket

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.references.official import randomize
from vpexp.data.masks import check_rle, decode_rle, encode_mask, rle_to_json
from vpexp.demo.app import LabellingApp
from vpexp.demo.proposals import Proposals
from vpexp.demo.requests import LONGEST_NAME, MOST_BYTES
from vpexp.demo.routes import build_app
from vpexp.demo.session import LabelSession
from vpexp.demo.store import LabelStore
from vpexp.inference.load import load_predictor
from vpexp.models.registry import build_sam_debug

BOX = [{"box": [5, 6, 40, 35]}]


@pytest.fixture
def labelling(debug_sam, images, tmp_path):
    session = LabelSession(load_predictor(debug_sam), images, kept=2)
    return LabellingApp(session, LabelStore(tmp_path / "labels"), {"model": "sam_debug"}, ["berry"])


@pytest.fixture
def client(labelling):
    app = build_app(labelling, "127.0.0.1")
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture
def finding(finder, images, tmp_path):
    session, store = LabelSession(finder, images, kept=2), LabelStore(tmp_path / "labels")
    return LabellingApp(session, store, {"model": "sam_debug"}, ["grape"], Proposals(session, store))


@pytest.fixture
def finding_client(finding):
    return TestClient(build_app(finding, "127.0.0.1"), base_url="http://127.0.0.1:8000")


def propose(client, index=0):
    return client.get(f"/api/images/{index}/proposals").json()["masks"]


def accept(client, masks, uid="all", index=0, **changed):
    return client.post(f"/api/images/{index}/accept", json={"uid": uid, "masks": masks, **changed})


def keep(client, index=0, **changed):
    content = {"steps": BOX, "label": "berry", "uid": "one", **changed}
    return client.post(f"/api/images/{index}/masks", json=content)


def test_page__is_whole_and_asks_nobody_else(client):
    page = client.get("/")

    assert page.headers["content-type"].startswith("text/html")
    for name in ("main.js", "view.js", "layer.js", "mask.js", "object.js", "proposals.js", "style.css", "icon.svg"):
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200, name
        assert "https://" not in answer.text
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert client.get("/page/main.js").headers["content-type"].startswith("text/javascript")


def test_images__are_listed_described_and_sent(client, images):
    about = client.get("/api/images").json()
    assert about["images"] == ["a.png", "b/a.png", "turned.jpg"]
    assert (about["labels"], about["counts"]) == (["berry"], {})

    turned = client.get("/api/images/2").json()
    assert (turned["name"], turned["width"], turned["height"], turned["masks"]) == ("turned.jpg", 32, 48, [])
    assert client.get("/api/images/0/picture").content == images[0].path.read_bytes()


def test_mask__is_answered_kept_relabelled_deleted_and_restored(client, labelling):
    assert client.post("/api/images/0/encode", json={}).json()["seconds"] >= 0
    shown = client.post("/api/images/0/segment", json={"steps": BOX}).json()
    kept = keep(client).json()["masks"][0]

    assert kept["mask"] == shown["mask"]
    assert kept["score"] == pytest.approx(shown["iou"], abs=1e-4)
    assert client.get("/api/images/0").json()["masks"] == [kept]
    assert client.get("/api/state").json()["counts"] == {"0": 1}
    assert client.post("/api/masks/1/label", json={"label": " young  leaf "}).status_code == 200
    assert client.get("/api/images/0").json()["masks"][0]["label"] == "young leaf"
    assert client.delete("/api/masks/1").status_code == 200
    assert client.get("/api/images/0").json()["masks"] == []
    assert client.delete("/api/masks/1").status_code == 404
    assert client.post("/api/masks/1/restore", json={}).status_code == 200
    assert json.loads(labelling.store.annotations.read_text())["annotations"][0]["id"] == 1


def test_choice_among_the_masks_of_a_click__is_what_is_shown_and_kept(client, labelling):
    def segment(**step):
        return client.post("/api/images/0/segment", json={"steps": [{"point": [20, 20], **step}]}).json()

    masks = {number: segment(mask=number) for number in (1, 2, 3)}
    first = segment()
    assert first == masks[first["choice"]] if first["choice"] else first["scores"] == masks[1]["scores"]
    assert [masks[number]["iou"] for number in masks] == masks[1]["scores"]
    assert [masks[number]["choice"] for number in masks] == [1, 2, 3]
    chosen = next(number for number in masks if masks[number]["area"])

    kept = keep(client, steps=[{"point": [20, 20], "mask": chosen}]).json()["masks"][0]

    assert kept["mask"] == masks[chosen]["mask"]
    (entry,) = json.loads(labelling.store.annotations.read_text())["annotations"]
    assert entry["prompt"] == {"points": [[20, 20]], "point_labels": [1], "mask": chosen}
    assert client.post("/api/images/0/segment", json={"steps": BOX}).json()["scores"] == []


def test_page_that_was_open_before_a_restart__changes_no_other_mask_of_the_same_number(client, labelling):
    old = keep(client).json()["masks"][0]
    path = f"/api/masks/{old['id']}"
    assert client.delete(path, params={"uid": "one"}).status_code == 200
    object.__setattr__(labelling, "store", LabelStore(labelling.store.folder))  # as after a restart
    new = keep(client, uid="two").json()["masks"][0]
    assert new["id"] == old["id"]
    kept = labelling.store.annotations.read_bytes()

    for answer in (
        client.delete(path, params={"uid": "one"}),
        client.post(f"{path}/restore", params={"uid": "one"}, json={}),
        client.post(f"{path}/label", params={"uid": "one"}, json={"label": "leaf"}),
    ):
        assert answer.status_code == 404
    assert labelling.store.annotations.read_bytes() == kept
    assert client.delete(path, params={"uid": new["uid"]}).status_code == 200


def test_state__is_sent_only_when_it_changed(client):
    state = client.get("/api/state").json()
    assert client.get("/api/state", params={"version": state["version"]}).json() == {"version": state["version"]}

    keep(client)
    changed = client.get("/api/state", params={"version": state["version"]}).json()
    assert changed["counts"] == {"0": 1}
    client.post("/api/labels", json={"label": "leaf"})

    assert client.get("/api/state", params={"version": changed["version"]}).json()["labels"] == ["berry", "leaf"]


def test_request_that_is_sent_again__keeps_nothing_twice(client):
    assert keep(client).json()["masks"][0]["id"] == keep(client).json()["masks"][0]["id"]
    assert client.get("/api/state").json()["counts"] == {"0": 1}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/%2e%2e/pyproject.toml",
        "/page/nothing.js",
        "/page/",
        "/api/images/3",
        "/api/images/3/picture",
        "/api/images/-1/picture",
        "/api/images/..%2f..%2fetc%2fpasswd/picture",
        "/api/images/a.png/picture",
        "/api/images/99999999999999999999999/picture",
        "/api/images/0/picture/x",
        "/photos/a.png",
    ],
)
def test_what_is_no_image_of_the_source__is_not_found(client, path):
    answer = client.get(path)

    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("path", "content", "status", "complaint"),
    [
        ("/api/images/0/segment", {}, 400, "steps must be"),
        ("/api/images/0/segment", {"steps": [{"point": [70, 1]}]}, 400, "outside of the image"),
        ("/api/images/0/segment", [1], 400, "no JSON object"),
        ("/api/images/3/segment", {"steps": BOX}, 404, "there is no image 3"),
        ("/api/images/0/masks", {"steps": BOX, "uid": "x"}, 400, "label must be a text"),
        ("/api/images/0/masks", {"steps": BOX, "uid": "x", "label": " "}, 400, "label must be a text"),
        ("/api/images/0/masks", {"steps": BOX, "uid": "x", "label": "a\nb"}, 400, "label must be a text"),
        ("/api/images/0/masks", {"steps": BOX, "uid": "x", "label": "l" * (LONGEST_NAME + 1)}, 400, "label must be"),
        ("/api/images/0/masks", {"steps": BOX, "label": "berry", "uid": 7}, 400, "uid must be"),
        ("/api/masks/4/restore", {}, 404, "mask 4"),
        ("/api/masks/4/label", {"label": "leaf"}, 404, "mask 4"),
        ("/api/labels", {"label": None}, 400, "label must be"),
    ],
)
def test_wrong_body__is_one_line(client, path, content, status, complaint):
    answer = client.post(path, json=content)

    assert answer.status_code == status
    assert complaint in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b'"' + b"x" * MOST_BYTES + b'"', "application/json", 413),
        (b'{"steps": []}', "text/plain", 415),
        (b"steps=1", "application/x-www-form-urlencoded", 415),
    ],
)
def test_body_that_cannot_be_read__is_refused(client, body, kind, status):
    answer = client.post("/api/images/0/segment", content=body, headers={"content-type": kind})

    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_method_that_is_not_offered__is_refused(client):
    assert client.get("/api/masks/1").status_code == 405
    assert client.put("/").json() == {"error": "method not allowed"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "a b", "[::1"])
def test_foreign_name__is_refused(client, host):
    for path in ("/", "/api/images", "/api/images/0/picture", "/page/main.js"):
        assert client.get(path, headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:9000", "[::1]:8000", "192.168.1.4:8000", socket.gethostname()]
)
def test_own_name__is_answered_forwarded_ports_too(client, host):
    assert client.get("/api/state", headers={"host": host, "origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:8001", "https://127.0.0.1.evil:8000"]
)
def test_page_of_another_site__can_neither_read_nor_write(client, labelling, origin):
    assert client.get("/api/images", headers={"origin": origin}).status_code == 403
    answer = client.post(
        "/api/images/0/masks", json={"steps": BOX, "label": "x", "uid": "x"}, headers={"origin": origin}
    )

    assert answer.status_code == 403
    assert "may not use this server" in answer.json()["error"]
    assert not labelling.store.labels.masks
    assert client.get("/api/images/0/picture").headers["cross-origin-resource-policy"] == "same-origin"


def test_damaged_image__is_one_line_and_others_go_on(client, images):
    images[1].path.write_bytes(b"no image at all")

    for answer in (
        client.get("/api/images/1"),
        client.get("/api/images/1/picture"),
        client.post("/api/images/1/encode", json={}),
    ):
        assert answer.status_code == 422
        assert "no image, or its header is damaged" in answer.json()["error"]
    assert keep(client).status_code == 200


def test_defect__is_one_line_for_the_page_and_a_traceback_for_the_log(client, labelling, monkeypatch, caplog):
    monkeypatch.setattr(type(labelling.session), "encode", lambda *_, **__: 1 / 0)

    answer = client.post("/api/images/0/encode", json={})

    assert answer.status_code == 500
    assert answer.json()["error"].startswith("vpexp failed: ZeroDivisionError")
    assert "Traceback" in caplog.text


def test_names_that_no_encoding_prints__are_sent(debug_sam, tmp_path):
    from PIL import Image

    from vpexp.data.image_source import find_images

    name = b"caf\xe9 \xf0\x9f\x8d\x87.png".decode("utf-8", "surrogateescape")
    (tmp_path / "p").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(tmp_path / "p" / name)
    session = LabelSession(load_predictor(debug_sam), find_images(str(tmp_path / "p")), kept=1)
    store = LabelStore(tmp_path / "labels")
    client = TestClient(build_app(LabellingApp(session, store, {}, ["葡萄"]), "localhost"), base_url="http://localhost")

    assert client.get("/api/images").json()["images"] == [name]
    assert keep(client, label="葡萄").json()["masks"][0]["label"] == "葡萄"
    assert list(LabelStore(tmp_path / "labels").labels.images) == [name]


@pytest.mark.parametrize(
    "origin", ["http://[::1", "http://[x]:8000", "null", "http://127.0.0.1:8000]", "//[", "\u00ff"]
)
def test_guard__an_origin_that_is_no_address_is_a_stranger(client, origin):
    answer = client.post("/api/labels", json={"label": "leaf"}, headers={"Origin": origin.encode("latin-1")})

    assert answer.status_code == 403
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("number", ["9" * 13, "9" * 5000, "00", "-1", "1.0", "%31%32", "x"])
def test_numbers__that_name_no_image_or_mask_are_not_found(client, number):
    for path in (f"/api/images/{number}/picture", f"/api/images/{number}", f"/api/masks/{number}"):
        asked = client.get(path) if "masks" not in path else client.delete(path)
        assert asked.status_code in ((200, 404) if number == "00" else (404,)), path


def test_keep__a_photo_that_was_exchanged_gets_no_mask(client, labelling, images, tmp_path):
    """Clicks on one picture are no mask of another, for a page that sends what it was given and for one that does not."""
    stamp = client.get("/api/images/0").json()["stamp"]
    assert keep(client, uid="before", stamp=stamp).status_code == 200
    kept = labelling.store.annotations.read_bytes()
    labelled = labelling.store.folder / "images" / "train" / "a.png"
    old = labelled.read_bytes()
    other = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    other.save(tmp_path / "other.png")
    (tmp_path / "other.png").replace(images[0].path)

    for sent in ({"stamp": stamp}, {}, {"stamp": 3}, {"stamp": "x"}):
        for refused in (
            keep(client, uid="after", **sent),
            client.post("/api/images/0/segment", json={"steps": BOX, **sent}),
        ):
            assert refused.status_code == 409
            assert "a.png was exchanged since it was opened: open it again" in refused.json()["error"]
    assert labelling.store.annotations.read_bytes() == kept

    opened = client.get("/api/images/0").json()["stamp"]
    assert client.post("/api/images/0/segment", json={"steps": BOX, "stamp": opened}).status_code == 200
    refused = keep(client, uid="again", stamp=opened)
    assert refused.status_code == 409  # the data set has masks of the other picture
    assert "label this one elsewhere" in refused.json()["error"]
    assert (labelling.store.annotations.read_bytes(), labelled.read_bytes()) == (kept, old)

    client.delete("/api/masks/1")
    assert keep(client, uid="again", stamp=opened).status_code == 200
    assert labelled.read_bytes() == images[0].path.read_bytes()

    images[0].path.unlink()
    assert keep(client, uid="gone", stamp=opened).status_code == 422


def test_proposals__are_written_only_when_they_are_accepted_and_one_undo_takes_them_away(
    finding, finding_client, monkeypatch
):
    client, store, written = finding_client, finding.store, []
    write = store._write
    monkeypatch.setattr(store, "_write", lambda *given, **named: (written.append(1), write(*given, **named)))
    assert client.get("/api/images").json()["find"] is True

    proposed = propose(client)

    assert len(proposed) > 3
    assert {mask["label"] for mask in proposed} <= {"berry", "shoot"}
    assert not written
    assert not store.annotations.exists()
    kept = accept(client, proposed).json()["masks"]
    assert len(written) == 1
    assert [mask["mask"] for mask in kept] == [mask["mask"] for mask in proposed]
    assert client.get("/api/images/0").json()["masks"] == kept
    assert client.get("/api/state").json()["labels"] == ["grape", *dict.fromkeys(mask["label"] for mask in kept)]
    for entry, mask in zip(json.loads(store.annotations.read_text())["annotations"], proposed, strict=True):
        assert entry["prompt"] == mask["prompt"]
        assert entry["score"] == pytest.approx(mask["score"], abs=1e-4)
    assert accept(client, proposed).json()["masks"] == kept  # a request that is sent again
    assert accept(client, proposed, uid="other").json()["masks"] == []
    assert len(written) == 1

    assert client.delete("/api/masks", params={"uid": "all"}).status_code == 200
    assert client.get("/api/images/0").json()["masks"] == []
    assert client.delete("/api/masks", params={"uid": "all"}).status_code == 404
    for _ in range(2):
        assert client.post("/api/masks/restore", params={"uid": "all"}, json={}).status_code == 200
    assert len(written) == 3
    assert client.get("/api/images/0").json()["masks"] == kept
    assert client.delete("/api/masks").status_code == 400
    assert client.post("/api/masks/restore", params={"uid": "x"}, json={}).status_code == 404


def test_proposal__is_corrected_by_clicks_that_go_on_from_its_mask(finding, finding_client):
    client, (proposed, *_) = finding_client, propose(finding_client)
    found = {"found": {"box": proposed["prompt"]["box"], "point": proposed["prompt"]["points"][0]}}
    click = {"point": [20, 20], "inside": False}

    as_it_is = client.post("/api/images/0/segment", json={"steps": [found]}).json()
    corrected = client.post("/api/images/0/segment", json={"steps": [found, click]}).json()

    assert as_it_is["mask"] == proposed["mask"]
    assert corrected["mask"] != as_it_is["mask"]
    kept = keep(client, steps=[found, click], version=corrected["version"]).json()["masks"]
    assert kept[0]["mask"] == corrected["mask"]
    (entry,) = json.loads(finding.store.annotations.read_text())["annotations"]
    assert entry["prompt"] == {
        "box": proposed["prompt"]["box"],
        "points": [proposed["prompt"]["points"][0], [20, 20]],
        "point_labels": [1, 0],
    }


def test_slider__begins_where_it_would_have_been_best_for_what_was_labelled_last(finding, finding_client, monkeypatch):
    monkeypatch.setattr("vpexp.demo.proposals.FEWEST", 2)
    client, usual = finding_client, finding.session.find_threshold(finding.session.model)
    proposed = propose(client)
    ask = lambda index: client.get(f"/api/images/{index}/proposals").json()["threshold"]  # noqa: E731
    assert ask(1) == usual
    accept(client, proposed[:2])

    assert ask(0) == usual  # it is not labelled whole yet
    assert ask(1) == pytest.approx(proposed[1]["score"], abs=1e-4)

    finding.session._min_score = 0.3
    assert ask(1) == 0.3


def test_proposals__of_what_is_kept_or_rejected_are_not_shown(finding_client):
    proposed = propose(finding_client)
    accept(finding_client, [{**proposed[0], "label": "leaf"}])

    left = propose(finding_client)

    assert proposed[0]["mask"] not in [mask["mask"] for mask in left]
    assert 0 < len(left) < len(proposed)
    mask = {"mask": left[0]["mask"]}
    assert finding_client.post("/api/images/0/reject", json=mask).status_code == 200
    assert left[0] not in propose(finding_client)
    assert finding_client.post("/api/images/0/reject", json={**mask, "back": True}).status_code == 200
    assert propose(finding_client) == left


def test_accept__a_photo_that_was_exchanged_gets_no_masks(finding, finding_client, images, tmp_path):
    stamp, proposed = finding_client.get("/api/images/0").json()["stamp"], propose(finding_client)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "other.png")
    (tmp_path / "other.png").replace(images[0].path)

    refused = accept(finding_client, proposed, stamp=stamp)

    assert refused.status_code == 409
    assert "a.png was exchanged since it was opened: open it again" in refused.json()["error"]
    assert not finding.store.annotations.exists()


@pytest.mark.parametrize(
    ("masks", "complaint"),
    [
        (3, "masks must be a list"),
        ([3], "masks must be a list"),
        ([{"label": "x", "mask": {"size": [1, 1], "counts": "1"}}], "mask: "),
        ([{"label": "", "mask": None}], "label must be"),
    ],
)
def test_accept__what_is_no_proposal_is_refused(client, labelling, masks, complaint):
    refused = accept(client, masks)

    assert refused.status_code == 400
    assert complaint in refused.json()["error"]
    assert not labelling.store.annotations.exists()


def test_proposals__of_a_model_that_finds_nothing_are_none(client):
    assert client.get("/api/images").json()["find"] is False
    assert propose(client) == []


def test_another_model__answers_from_then_on_and_what_a_page_shows_is_kept(labelling, client):
    shown = client.post("/api/images/0/segment", json={"steps": BOX}).json()
    labelling.session.take_up(load_predictor(randomize(build_sam_debug(64), seed=5)))

    assert client.get("/api/state").json()["model_version"] == shown["version"] + 1
    kept = keep(client, version=shown["version"]).json()["masks"][0]
    assert kept["mask"] == shown["mask"]
    new = client.post("/api/images/0/segment", json={"steps": BOX}).json()
    assert new["mask"] != shown["mask"]
    forgotten = keep(client, uid="two", steps=[{"box": [1, 1, 30, 30]}], version=shown["version"])
    assert forgotten.status_code == 409
    assert "the model has learnt since" in forgotten.json()["error"]


def test_drawn_mask__is_kept_changed_split_and_joined(labelling, client):
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[2:8, 2:8] = mask_HW[20:24, 30:36] = True
    drawn = rle_to_json(encode_mask(mask_HW))
    kept = keep(client, mask=drawn).json()["masks"][0]
    assert (kept["mask"], kept["score"]) == (drawn, None)

    parts = client.post(f"/api/masks/{kept['id']}/split", params={"uid": "one"}, json={"uid": "parts"}).json()["masks"]
    assert len(parts) == 2
    first, second = client.get("/api/images/0").json()["masks"]
    assert (first["id"], first["uid"], second["uid"]) == (kept["id"], "one", "parts")
    assert [decode_rle(check_rle(one["mask"], 40, 60)).sum() for one in (first, second)] == [36, 24]
    assert len(client.post(f"/api/masks/{second['id']}/split", json={"uid": "more"}).json()["masks"]) == 1
    joined = {"mask": drawn, "edited": False, "without": "parts"}
    assert client.post(f"/api/masks/{kept['id']}/pixels", params={"uid": "one"}, json=joined).status_code == 200

    assert client.get("/api/images/0").json()["masks"] == [kept]
    (entry,) = json.loads(labelling.store.annotations.read_text())["annotations"]
    assert (entry["area"], entry["prompt"]) == (60, {"by": "hand"})
    empty = rle_to_json(encode_mask(np.zeros((40, 60), bool)))
    for wrong, status in (({**drawn, "size": [60, 40]}, 400), (None, 400), (empty, 409)):
        assert client.post(f"/api/masks/{kept['id']}/pixels", json={"mask": wrong}).status_code == status
    assert client.post("/api/masks/77/pixels", json={"mask": drawn}).status_code == 404


def test_done__is_kept_also_of_an_image_with_nothing_in_it(labelling, client):
    assert client.post("/api/images/0/done", json={"done": True}).status_code == 200
    keep(client, index=1)
    client.post("/api/images/1/done", json={"done": True})

    state = client.get("/api/state").json()

    assert (state["done"], state["counts"]) == ([0, 1], {"1": 1})
    assert LabelStore(labelling.store.folder).labels.done == ["a.png", "b/a.png"]
    client.delete("/api/masks/1")
    assert client.get("/api/state").json()["done"] == [0, 1]  # it was looked at all the same
    for index in (0, 1):
        client.post(f"/api/images/{index}/done", json={"done": False})
    assert json.loads(labelling.store.annotations.read_text())["images"] == []
    assert client.post("/api/images/0/done", json={"done": 1}).status_code == 400


def test_labels__are_renamed_with_their_masks_and_deleted_without(labelling, client):
    keep(client)
    client.post("/api/labels", json={"label": "leaf"})

    renamed = client.post("/api/labels/rename", json={"label": "berry", "name": "grape"}).json()

    assert renamed["labels"] == ["grape", "leaf"]
    assert client.get("/api/images/0").json()["masks"][0]["label"] == "grape"
    assert [entry["name"] for entry in json.loads(labelling.store.annotations.read_text())["categories"]] == ["grape"]
    for path, content, complaint in (
        ("rename", {"label": "leaf", "name": "grape"}, "there is a label grape already"),
        ("rename", {"label": "berry", "name": "x"}, "there is no label berry any more"),
        ("delete", {"label": "grape"}, "1 mask has the label grape"),
    ):
        refused = client.post(f"/api/labels/{path}", json=content)
        assert refused.status_code == 409
        assert complaint in refused.json()["error"]
    client.delete("/api/masks/1")
    assert client.post("/api/labels/delete", json={"label": "grape"}).json()["labels"] == ["leaf"]
    assert json.loads(labelling.store.annotations.read_text())["categories"] == []
    assert "one label must stay" in client.post("/api/labels/delete", json={"label": "leaf"}).json()["error"]
    client.post("/api/labels", json={"label": "grape"})
    keep(client, label="grape", uid="two")
    assert json.loads(labelling.store.annotations.read_text())["categories"] == [{"id": 1, "name": "grape"}]


def test_learning__that_is_off_cannot_be_steered(client):
    assert client.get("/api/state").json()["learning"] is None
    assert client.post("/api/learning/stop", json={}).status_code == 404
