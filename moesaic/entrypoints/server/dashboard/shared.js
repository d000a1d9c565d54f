// What several panels have in common: the model's layers of experts, and the one that is looked at.

const changes = new EventTarget();

export const shared = {
  layers: [], // [{name, short, num_experts, top_k}], empty for a model without experts and before it is known
  without: false, // whether the model is known to have none
  place: 0, // index in `layers` of the one chosen, in any panel

  // `layers` as /v1/moe/experts gives them; a layer may have experts in its attention too.
  setLayers(layers) {
    const named = layers.map(({ layer, part, num_experts, top_k }) => ({
      name: part === "attention" ? `${layer}, attention` : String(layer),
      short: part === "attention" ? `${layer}a` : String(layer),
      num_experts,
      top_k,
    }));
    if (JSON.stringify(named) === JSON.stringify(this.layers)) return;
    if (named.length !== this.layers.length) this.place = Math.floor(named.length / 2);
    this.layers = named;
    changes.dispatchEvent(new Event("layers"));
  },

  setPlace(place) {
    if (place === this.place) return;
    this.place = place;
    changes.dispatchEvent(new Event("place"));
  },

  get layerName() {
    return `layer ${this.layers[this.place]?.name}`;
  },
};

// `event` is "layers" or "place".
export const onShared = (event, listener) => changes.addEventListener(event, listener);

// A <select> that shows and sets the layer.
export function layerSelect(select) {
  const show = () => {
    select.replaceChildren(...shared.layers.map(({ name }, place) => new Option(`layer ${name}`, place)));
    select.value = shared.place;
  };
  select.addEventListener("change", () => shared.setPlace(Number(select.value)));
  onShared("layers", show);
  onShared("place", () => (select.value = shared.place));
  show();
}
