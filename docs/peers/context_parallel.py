"""PyTorch's context parallelism over NCCL, timed for `cargo xtask bench-multinode --peer torch`.

Reads one JSON object: {"warmups", "launches", "rows": [{"seq", "heads_q", "heads_kv", "head_dim", "causal"}, ...]};
`causal` is null for a mask that PyTorch does not offer here. Starts a process for each GPU and prints a JSON object a
line: {"row", "name", "ms": [slowest rank's milliseconds of each launch]} or {"row", "name", "error"}, and at last
{"done": true}. {"error"} alone: nothing could be timed.

Method as in the benchmark: random normal data, [b, s, h, d] in memory where PyTorch lets us choose, warm-up launches,
then one pair of CUDA events around each launch, nobody waits between them.
"""

import json
import os
import socket
import sys

try:
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch.distributed.device_mesh import init_device_mesh
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    print(json.dumps({"error": f"this Python has no PyTorch ({error}); give another by --python"}), flush=True)
    raise SystemExit(0)


def slowest(launch, request):
    """Milliseconds of each launch on the rank that took longest for it."""
    for _ in range(request["warmups"]):
        launch()
    torch.cuda.synchronize()
    dist.barrier()
    pairs = []
    for _ in range(request["launches"]):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        launch()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    times = torch.tensor([begin.elapsed_time(end) for begin, end in pairs], device="cuda")
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return times.tolist()


def sdpa(q, k, v, causal):
    """By the attribute of the module: context_parallel replaces it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def repeated(row, k, v):
    """Ring attention takes as many KV heads as query heads."""
    repeats = row["heads_q"] // row["heads_kv"]
    return (k, v) if repeats == 1 else tuple(x.repeat_interleave(repeats, dim=1) for x in (k, v))


def context_parallel(row, request, mesh, rotate):
    from torch.distributed.tensor.experimental import context_parallel as parallel

    try:
        from torch.distributed.tensor.experimental._context_parallel import set_rotate_method
    except ImportError:  # Before PyTorch 2.10.
        from torch.distributed.tensor.experimental._attention import set_rotate_method

    set_rotate_method(rotate)

    def tensor(heads):
        return torch.randn(1, heads, row["seq"], row["head_dim"], device="cuda", dtype=torch.bfloat16)

    q, k, v = tensor(row["heads_q"]), tensor(row["heads_kv"]), tensor(row["heads_kv"])
    k, v = repeated(row, k, v)
    buffers = [q, k, v]
    with parallel(mesh, buffers=buffers, buffer_seq_dims=[2, 2, 2], no_restore_buffers=set(buffers)):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return slowest(lambda: sdpa(q, k, v, row["causal"]), request)


def gather_first(row, request, mesh):
    """All-gather of K and V, then cuDNN; without a mask, where rows need no order."""
    if row["causal"]:
        raise NotImplementedError("not offered: cuDNN's causal mask does not fit rows of two chunks")
    ranks = mesh.size()

    def tensor(heads):
        # [s, h, d] in memory, so that what is gathered needs no copy.
        rows = row["seq"] // ranks
        return torch.randn(rows, heads, row["head_dim"], device="cuda", dtype=torch.bfloat16)

    q, k, v = tensor(row["heads_q"]), tensor(row["heads_kv"]), tensor(row["heads_kv"])
    all_k, all_v = (torch.empty(row["seq"], *x.shape[1:], device="cuda", dtype=x.dtype) for x in (k, v))
    batch = lambda x: x.transpose(0, 1).unsqueeze(0)
    grouped = row["heads_q"] != row["heads_kv"]

    def launch():
        dist.all_gather_into_tensor(all_k, k)
        dist.all_gather_into_tensor(all_v, v)
        F.scaled_dot_product_attention(batch(q), batch(all_k), batch(all_v), enable_gqa=grouped)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return slowest(launch, request)


METHODS = [
    ("context_parallel, all-gather", lambda *of: context_parallel(*of, "allgather")),
    ("context_parallel, all-to-all", lambda *of: context_parallel(*of, "alltoall")),
    ("NCCL all-gather, then cuDNN", gather_first),
]


def work(rank, ranks, port, request):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    mesh = init_device_mesh("cuda", (ranks,))
    version = f"PyTorch {torch.__version__}"
    with torch.no_grad():
        for index, row in enumerate(request["rows"]):
            for name, method in METHODS:
                repeats = name.startswith("context_parallel") and row["heads_q"] != row["heads_kv"]
                reply = {"row": index, "name": f"{name}{', K and V repeated' * repeats} ({version})"}
                try:
                    if row["causal"] is None:
                        raise NotImplementedError("not offered")
                    reply["ms"] = method(row, request, mesh)
                # The benchmark prints it and goes on; all ranks fail alike.
                except NotImplementedError as error:
                    reply["error"] = str(error)
                except Exception as error:
                    reply["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
                torch.cuda.empty_cache()
                if rank == 0:
                    print(json.dumps(reply), flush=True)
    dist.destroy_process_group()


def main():
    request = json.loads(sys.stdin.readline())
    ranks = torch.cuda.device_count()
    if ranks < 2:
        print(json.dumps({"error": f"context parallelism needs at least 2 GPUs, here are {ranks}"}), flush=True)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (ranks, port, request), nprocs=ranks)
    print(json.dumps({"done": True}), flush=True)


if __name__ == "__main__":
    main()
