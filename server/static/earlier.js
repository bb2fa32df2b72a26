// Earlier pictures, the newest first; a click on one brings back what it was made with.

const MOST = 24;

export class Earlier {
  #list;
  #bringBack;

  // `bringBack` is called with what was kept.
  constructor(list, bringBack) {
    this.#list = list;
    this.#bringBack = bringBack;
  }

  keep({blob, prompt, seed, steps}) {
    const button = document.createElement("button");
    const image = document.createElement("img");
    image.src = URL.createObjectURL(blob);
    image.alt = "";
    button.type = "button";
    button.title = `${prompt}, seed ${seed}`;
    button.setAttribute("aria-label", `Bring back ${prompt}, seed ${seed}`);
    button.append(image);
    button.addEventListener("click", () => this.#bringBack({prompt, seed, steps}));
    const item = document.createElement("li");
    item.append(button);
    this.#list.prepend(item);
    while (this.#list.children.length > MOST) {
      URL.revokeObjectURL(this.#list.lastElementChild.querySelector("img").src);
      this.#list.lastElementChild.remove();
    }
  }
}
