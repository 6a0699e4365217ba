"""docs/datasets.md: its programs on small files in the shape of the published ones, and what its table says."""

import base64
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from question_files import write_jsonl
from shown import SHOWN

from data_engine.questions.dataset import load_questions, read_images
from data_engine.schemas import IMAGE

PAGE = "docs/datasets.md"
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (90, 90, 90)]
PICTURES = pa.list_(IMAGE)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), COLOURS[number]).save(file, "PNG")
    return file.getvalue()


def pictures(*numbers: int | None) -> pa.Array:
    return pa.array([None if one is None else {"bytes": png(one), "path": None} for one in numbers], IMAGE)


def write(path: str, **columns: object) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def run_program(beginning: str) -> None:
    """The program of the page with these words in it."""
    [text] = [one.text for one in SHOWN if one.page == PAGE and one.kind == "python" and beginning in one.text]
    exec(compile(text, PAGE, "exec"), {})


def asked(path: str, **options: object) -> list[tuple]:
    """Of each row: its id, what the user is shown, with colours in the places of the pictures."""
    questions = load_questions(path, **options)
    found = []
    for row in questions.rows(range(len(questions))):
        assert row.problem is None
        colours = [COLOURS.index(image.getpixel((0, 0))) for image in read_images(row, 1)]
        content = row.conversation.messages[-1].content
        found.append((row.idx, *(colours[part] if isinstance(part, int) else part for part in content)))
    return found


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "downloads").mkdir()


def test_rows_without_an_id_are_numbered_by_a_flag():
    for shard, numbers in enumerate(((0, 1), (2,))):
        name = f"downloads/ai2d/data/test-{shard:05}-of-00002.parquet"
        write(name, question=[f"{one}?" for one in numbers], options=[["a"]] * len(numbers), image=pictures(*numbers))
    assert asked("downloads/ai2d", columns={"idx": ""}) == [(0, 0, "0?"), (1, 1, "1?"), (2, 2, "2?")]


def test_pictures_of_an_imagefolder_are_asked_about():
    for number, name in enumerate(("test/cat/1.png", "train/dog/0.png")):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_bytes(png(number))
    assert asked(".", question="What?") == [("test/cat/1.png", 0, "What?"), ("train/dog/0.png", 1, "What?")]


def test_the_first_turn_of_a_conversation_is_asked():
    def turns(text):
        return [{"from": "human", "value": text}, {"from": "gpt", "value": "A."}, {"from": "human", "value": "Later?"}]

    rows = [
        {"id": "0", "image": "coco/0.png", "conversations": turns("<image>\nWhat?")},
        {"id": "0", "image": ["coco/1.png", "coco/2.png"], "conversations": turns("<image> or <image>?")},
        {"id": "text", "model": "", "conversations": turns("Hi")},
    ]
    Path("downloads/llava_v1_5_mix665k.json").write_text(json.dumps(rows))
    Path("pictures/coco").mkdir(parents=True)
    for number in range(3):
        Path(f"pictures/coco/{number}.png").write_bytes(png(number))
    run_program("llava_v1_5_mix665k")
    assert asked("data/llava.jsonl", image_root="pictures") == [
        (0, 0, "\nWhat?"), (1, 1, " or ", 2, "?"), (2, "Hi")
    ]  # fmt: skip


def test_the_first_turn_of_a_parquet_file_is_a_column():
    turns = [[{"from": "human", "value": f"<image>\n{one}?"}, {"from": "gpt", "value": "A."}] for one in range(2)]
    write("downloads/onevision/train-00000-of-00001.parquet", id=["a", "a"], image=pictures(2, 1), conversations=turns)
    run_program("downloads/onevision")
    assert asked("data/onevision") == [(0, 2, "\n0?"), (1, 1, "\n1?")]


def test_a_chat_is_asked_without_the_answer_at_its_end():
    chat = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    Path("0.png").write_bytes(png(0))
    write_jsonl(Path("downloads/sft.jsonl"), {"messages": chat, "images": ["0.png"]})
    run_program("downloads/sft")
    assert asked("data/chats.jsonl", image_root=".") == [(0, 0, "What?")]


def test_pictures_inside_of_messages_become_a_list():
    def request(name, *content):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": list(content)}]
        return {"custom_id": name, "method": "POST", "body": {"model": "a", "messages": messages}}

    coded = [{"url": f"data:image/png;base64,{base64.b64encode(png(one)).decode()}"} for one in range(3)]
    shown = [{"type": "image_url", "image_url": one} for one in coded]
    text = {"type": "text", "text": "Which?"}
    rows = [request("a", shown[2], text, shown[1]), request("b", text)]
    write_jsonl(Path("downloads/requests.jsonl"), *rows)
    run_program("downloads/requests")
    assert asked("data/requests.jsonl") == [("a", 2, "Which?", 1), ("b", "Which?")]


def test_pictures_of_several_columns_stand_where_the_text_names_them():
    """In MMMU's options, too, and the same one twice."""
    columns = {f"image_{number}": pictures(None, None) for number in range(3, 8)}
    write(
        "downloads/MMMU/Art/validation-00000-of-00001.parquet",
        id=["a", "b"],
        question=["See <image 1>. Which?", "Of <image 2> and <image 1>?"],
        options=["['<image 2>', \"it's <image 1>\"]", "[]"],
        image_1=pictures(0, 1),
        image_2=pictures(2, 3),
        **columns,
    )
    run_program("downloads/MMMU")
    assert asked("data/mmmu.parquet") == [
        ("a", "See ", 0, ". Which?\nA. ", 2, "\nB. it's ", 0),
        ("b", "Of ", 3, " and ", 1, "?"),
    ]


def test_questions_of_vqav2_are_about_their_pictures():
    questions = [
        {"image_id": 42, "question": "A?", "question_id": 42000},
        {"image_id": 7, "question": "B?", "question_id": 7001},
    ]
    whole = {"info": {}, "license": {}, "data_subtype": "val2014", "questions": questions}
    Path("downloads/v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(whole))
    Path("val2014").mkdir()
    for number, name in enumerate(("000000000042", "000000000007")):
        Path(f"val2014/COCO_val2014_{name}.jpg").write_bytes(png(number))
    run_program("v2_OpenEnded")
    assert asked("data/vqav2.jsonl", image_root="val2014") == [(42000, 0, "A?"), (7001, 1, "B?")]


def test_pictures_of_tar_files_are_asked_about():
    Path("downloads/shards").mkdir()
    for shard in range(2):
        with tarfile.open(f"downloads/shards/{shard:05}.tar", "w") as file:
            for ending, data in ((".png", png(shard)), (".txt", b"a caption"), (".json", b"{}")):
                member = tarfile.TarInfo(f"000{ending}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    run_program("tarfile")
    assert asked("data/shards") == [
        ("00000/000.png", 0, "Describe the picture."), ("00001/000.png", 1, "Describe the picture.")
    ]  # fmt: skip


def test_columns_are_named_as_the_table_says():
    write("textvqa.parquet", image_id=["p"], question_id=[5], question=["A?"], image=pictures(1))
    assert asked("textvqa.parquet", columns={"idx": "question_id"}) == [(5, 1, "A?")]
    write("mathvista.parquet", pid=["1"], question=["A?"], image=["images/1.jpg"], decoded_image=pictures(1))
    assert asked("mathvista.parquet", columns={"idx": "pid", "image": "decoded_image"}) == [("1", 1, "A?")]
    chat = [[{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "A?"}]}]]
    write("chat.parquet", prompt=chat, images=pa.array([pictures(1).to_pylist()], PICTURES))
    assert asked("chat.parquet", columns={"idx": "", "messages": "prompt"}) == [(0, 1, "A?")]
    feedback = {"id": ["a", "a"], "prompt": ["A?", "B?"], "image": pictures(1, 2)}
    write("vlfeedback.parquet", **feedback)
    assert asked("vlfeedback.parquet", columns={"idx": "", "question": "prompt"}) == [(0, 1, "A?"), (1, 2, "B?")]
    coded = base64.b64encode(png(1)).decode()
    Path("mmbench.tsv").write_text(f'index\tquestion\thint\timage\n7\t"A, or ""B""?"\t\t{coded}\n')
    assert asked("mmbench.tsv", columns={"idx": "index"}) == [(7, 1, 'A, or "B"?')]
    for number in (1, 2):
        Path(f"{number}.png").write_bytes(png(number))
    path = write_jsonl(Path("metadata.jsonl"), {"file_name": "2.png", "question": "A?"})
    names = {"idx": "file_name", "image": "file_name"}
    assert asked(path, columns=names, image_root=".") == [("2.png", 2, "A?")]
    path = write_jsonl(Path("one-path.jsonl"), {"id": 7, "image": "1.png", "question": "<image>\nA?"})
    assert asked(path, columns={"idx": ""}, image_root=".") == [(0, 1, "\nA?")]
    row = {"id": 7, "image": ["1.png", "2.png"], "question": "Image-1: <image>\nImage-2: <image>\nA?"}
    path = write_jsonl(Path("mmpr.jsonl"), row)
    assert asked(path, columns={"idx": "", "images": "image"}, image_root=".") == [
        (0, "Image-1: ", 1, "\nImage-2: ", 2, "\nA?")
    ]  # fmt: skip
