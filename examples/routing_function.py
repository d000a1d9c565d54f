"""Routing functions: code of your own that changes which experts serve a token, without touching the model."""

import torch

from moesaic import LLM, RoutingDecision, RoutingInput, SamplingParams


def domain_aware_routing(scores, domain_tags):
    """The simple signature: the router's scores of T tokens and E experts, and the tags of the tokens' requests."""
    finance_mask = domain_tags == "finance"
    scores[finance_mask, 8:] *= 0.1
    return scores


def careful_when_sure(given: RoutingInput) -> RoutingDecision:
    """The full one: tokens whose router is sure of its first expert get that one alone, from the second layer on."""
    sure = given.scores.amax(1) > 0.5 * given.scores.sum(1)
    return RoutingDecision(k=torch.where(sure & (given.layer > 0), 1, given.k))


if __name__ == "__main__":
    llm = LLM(model="moe-model")
    llm.register_moe_routing_func(domain_aware_routing)
    prompts = ["12 + 30 =", "12 + 30 ="]
    params = [SamplingParams(temperature=0, max_tokens=8, routing={"tags": tags}) for tags in ([], ["finance"])]
    for output, param in zip(llm.generate(prompts, params), params, strict=True):
        print(param.routing.tags, repr(output.text))

    llm.register_moe_routing_func(careful_when_sure)  # is given what the first has made
    [output] = llm.generate(["12 + 30 ="], params[1])
    print(repr(output.text))
