"""The result of a bench as text."""

from collections.abc import Mapping

from data_engine.bench.steady import long_queue
from data_engine.bench.ways import ALL_WAYS, half_of


def table(result: dict) -> str:
    """A line for each way, and remarks; `result` as bench.measure.run returns it."""
    sizes, machine = result["sizes"], result["machine"]
    lines = [
        f"{result['model']}: {sizes['prefix_tokens']} prefix tokens, k = {sizes['k']}, {sizes['answer_tokens']} scored "
        f"and {sizes['new_tokens']} sampled tokens an answer, {result['dtype']}, {machine['device']}, "
        f"{machine['threads']} threads, median of {sizes['rounds']}",
        f"{'':26}{'tokens/s':>9}{'questions/s':>12}{'peak GB':>9}{'ceiling':>9}{'engine is':>15}",
    ]
    for name, one in result["ways"].items():
        ratio, share = result["engine_is_faster_by"].get(name), result["share_of_ceiling"].get(name)
        questions, peak = result["questions_a_second"].get(name), one["peak_bytes"]
        lines.append(
            f"{name:26}{result['tokens_a_second'][name]:9.0f}{f'{questions:.3f}' if questions else '':>12}"
            f"{f'{peak / 1e9:.1f}' if peak else '':>9}{f'{share:.0%}' if share else '':>9}"
            f"{f'{ratio:.1f} x faster' if ratio else '':>15}   {ALL_WAYS[name].what}"
        )
    return "\n".join(lines + _remarks(result))


def _remarks(result: dict) -> list[str]:
    machine, told, sizes = result["machine"], result["estimate"], result["sizes"]
    lines = [
        f"ceilings measured here: {machine['matmul_flops'] / 1e9:.0f} GFLOP/s, {machine['read_bytes'] / 1e9:.0f} GB/s"
    ]
    if result["no_stock"]:
        lines.append(result["no_stock"])
    if result["vllm"]:
        lines.append(f"vLLM {result['vllm']}, its start not timed")
    if result["no_vllm"]:
        lines.append(result["no_vllm"])
    if rate := result["steady_tokens_a_second"]:
        whole = result["tokens_a_second"]["engine, drawn lengths"]
        lines.append(steady_told(rate, whole, sizes, on_gpu=told["gpu_hours"] is not None))
    if result["largest_difference_nat"] is not None:
        lines.append(f"largest difference of a log-prob to transformers: {result['largest_difference_nat']:.1e} nat")
    half = half_of(sizes["drawn_questions"])
    gain = result["one_queue_gain"]
    lines.append(f"two units of {half} questions in one queue, as on a GPU, are sampled {gain:.2f} times as fast")
    if result["overhead"] is not None:
        lines.append(f"whole job: {result['overhead']:.1%} of the time is in no model call")
    gpus = "" if told["gpu_hours"] is None else f", {told['gpu_hours']:.1f} GPU-hours"
    lines.append(
        f"{told['questions']} questions at this pace, one rank: {told['hours']:.1f} hours{gpus}, "
        f"{told['disk_bytes'] / 1e9:.1f} GB on disk with images as large as these"
    )
    return lines


def steady_told(rate: float, whole: float, sizes: Mapping[str, int], on_gpu: bool) -> str:
    """The steady rate of drawn lengths, and where the queue was too short for it; `whole` is that of the whole unit."""
    told = (
        f"drawn lengths: {rate:.0f} tokens/s between the first and the last refill of a row, {whole:.0f} with the "
        "beginning and the tail"
    )
    enough = long_queue(sizes["rows"], sizes["k"])
    if on_gpu and sizes["drawn_questions"] < enough:
        told += f"; that of a long run is lower, and takes {enough} questions with {sizes['rows']} rows"
    return told
