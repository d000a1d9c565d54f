"""Quantised formats that are known and not read, so that a refusal can name them. Torch-free."""

from collections.abc import Iterable

# quant_method of a config.json -> what it is
METHODS = {
    "bitsandbytes": "bitsandbytes (NF4, FP4 or LLM.int8)", "torchao": "torchao", "hqq": "HQQ", "quip": "QuIP#",
    "quip#": "QuIP#", "exl2": "EXL2 (ExLlamaV2)", "exl3": "EXL3 (ExLlamaV3)", "modelopt": "ModelOpt (NVFP4 or FP8)",
    "modelopt_fp4": "ModelOpt's NVFP4", "nvfp4": "NVFP4", "aqlm": "AQLM", "vptq": "VPTQ", "quanto": "quanto",
    "eetq": "EETQ", "higgs": "HIGGS", "fp_quant": "FP-Quant (MXFP4 or NVFP4)", "bitnet": "BitNet", "spqr": "SpQR",
    "fbgemm_fp8": "FBGEMM FP8", "quark": "Quark", "sinq": "SINQ", "metal": "MLX for Metal", "marlin": "Marlin",
    "squeezellm": "SqueezeLLM", "deepspeedfp": "DeepSpeed FP", "experts_int8": "experts_int8",
}  # fmt: skip
# Last part of a tensor's name -> whose it is, for checkpoints whose config says nothing
TENSORS = {
    "quant_state": "bitsandbytes", "absmax": "bitsandbytes", "SCB": "bitsandbytes (LLM.int8)",
    "q_weight": "EXL2 (ExLlamaV2)", "q_scale_max": "EXL2 (ExLlamaV2)", "trellis": "EXL3 (ExLlamaV3)",
    "Qidxs": "QuIP#", "W_q": "HQQ", "weight_scale_2": "ModelOpt's NVFP4", "weight_global_scale": "NVFP4",
    "codebooks": "AQLM", "qweight": "GPTQ or AWQ", "weight_packed": "compressed-tensors", "weight_scale_inv": "FP8",
}  # fmt: skip


def quantised_as(names: Iterable[str]) -> tuple[str, str] | None:
    """A tensor that only a quantised checkpoint holds, and the format that it is of; None where there is none."""
    for name in names:
        last = name.rpartition(".")[2].partition("__")[0]
        for kind in (last, name.rpartition(".")[0].rpartition(".")[2]):  # weight.quant_state.bitsandbytes__nf4
            if kind in TENSORS:
                return name, TENSORS[kind]
    return None
