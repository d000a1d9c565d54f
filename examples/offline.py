"""Many prompts without a server. The model is the one that comes with the package; any folder or hub id will do."""

from moesaic import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(model="moe-model", max_num_seqs=16)

    prompts = ["Explain MoE architecture", "12 + 30 =", "The router"]
    for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24)):
        print(f"{output.prompt!r} -> {output.text!r}")

    [answer] = llm.chat([{"role": "user", "content": "What is 21 + 47?"}], SamplingParams(temperature=0, max_tokens=16))
    print(answer.text)
