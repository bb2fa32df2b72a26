// The drawing area: white lines on black, or a picture with lines upon it.

const KEY_STEP = 12;

export class Drawing extends EventTarget {
  #canvas;
  #pen;
  #strokes = [];
  #picture = null; // ImageBitmap under the strokes
  #current = null;
  #pointer = null; // the id of the one that draws; a palm or a second finger must not
  #cursor = {x: 256, y: 256};
  #keyboard = false; // whether the pen's place has to be shown

  constructor(canvas) {
    super();
    this.#canvas = canvas;
    this.#pen = canvas.getContext("2d");
    this.erasing = false;
    this.width = 12;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, (event) => { if (event.pointerId === this.#pointer) this.#up(); });
    }
    canvas.addEventListener("keydown", (event) => this.#keydown(event));
    canvas.addEventListener("blur", () => { this.#keyboard = false; this.#up(); });
    this.#redraw();
  }

  get empty() { return this.#picture === null && !this.#strokes.some((stroke) => !stroke.erasing); }

  // What the lines are: with a picture beneath, edges have to be found.
  get type() { return this.#picture === null ? "edges" : "picture"; }

  // The drawing as a file of `width` × `height`.
  blob(width, height) {
    const small = new OffscreenCanvas(width, height);
    const pen = small.getContext("2d");
    pen.imageSmoothingQuality = "high";
    this.#redraw(false);
    pen.drawImage(this.#canvas, 0, 0, width, height);
    this.#redraw();
    return small.convertToBlob({type: "image/png"});
  }

  // The area takes the shape of the picture that is made.
  resize(width, height) {
    const scale = 512 / Math.max(width, height);
    this.#canvas.width = Math.round(width * scale);
    this.#canvas.height = Math.round(height * scale);
    this.#redraw();
  }

  show(picture) {
    this.#current = null;
    this.#strokes = [];
    this.#picture = picture;
    this.#redraw();
    this.#changed();
  }

  undo() {
    this.#current = null;
    if (this.#strokes.length) this.#strokes.pop();
    else this.#picture = null;
    this.#redraw();
    this.#changed();
  }

  clear() { this.show(null); }

  #down(event) {
    if (event.button !== 0 || this.#pointer !== null) return;
    this.#pointer = event.pointerId;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#keyboard = false;
    this.#begin(this.#position(event));
  }

  #move(event) {
    if (this.#current === null || event.pointerId !== this.#pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.#extend(this.#position(each));
  }

  #up() {
    this.#pointer = null;
    this.#current = null;
    this.#redraw();
  }

  #keydown(event) {
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    const move = moves[event.key];
    if (move) {
      const {x, y} = this.#cursor;
      this.#cursor = {
        x: Math.min(this.#canvas.width, Math.max(0, x + KEY_STEP * move[0])),
        y: Math.min(this.#canvas.height, Math.max(0, y + KEY_STEP * move[1])),
      };
      if (this.#current !== null) this.#extend(this.#cursor);
    } else if (event.key === " ") {
      if (this.#current === null) this.#begin(this.#cursor);
      else this.#current = null;
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.undo();
    } else {
      return;
    }
    event.preventDefault();
    this.#keyboard = true;
    this.#redraw();
  }

  #position(event) {
    const box = this.#canvas.getBoundingClientRect();
    // The canvas is shown with object-fit: contain.
    const scale = Math.min(box.width / this.#canvas.width, box.height / this.#canvas.height);
    return {
      x: (event.clientX - box.left - (box.width - scale * this.#canvas.width) / 2) / scale,
      y: (event.clientY - box.top - (box.height - scale * this.#canvas.height) / 2) / scale,
    };
  }

  #begin(point) {
    this.#current = {erasing: this.erasing, width: this.width, points: [point]};
    this.#strokes.push(this.#current);
    this.#cursor = point;
    this.#line(this.#current, 0);
    this.#changed();
  }

  #extend(point) {
    this.#current.points.push(point);
    this.#cursor = point;
    this.#line(this.#current, this.#current.points.length - 2);
    this.#changed();
  }

  #redraw(cursor = true) {
    const {width, height} = this.#canvas;
    this.#pen.fillStyle = "#000";
    this.#pen.fillRect(0, 0, width, height);
    if (this.#picture !== null) {
      const scale = Math.max(width / this.#picture.width, height / this.#picture.height);
      const [w, h] = [scale * this.#picture.width, scale * this.#picture.height];
      this.#pen.drawImage(this.#picture, (width - w) / 2, (height - h) / 2, w, h);
    }
    for (const stroke of this.#strokes) this.#line(stroke, 0);
    if (cursor && this.#keyboard) {
      this.#pen.strokeStyle = this.#current === null ? "#8b86ff" : "#5fd3a5";
      this.#pen.lineWidth = 4;
      this.#pen.beginPath();
      this.#pen.arc(this.#cursor.x, this.#cursor.y, 14, 0, 2 * Math.PI);
      this.#pen.stroke();
    }
  }

  // A stroke from its point `from` on; a single point is a dot.
  #line({erasing, width, points}, from) {
    const pen = this.#pen;
    pen.strokeStyle = erasing ? "#000" : "#fff";
    pen.lineWidth = erasing ? 2.5 * width : width;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(points[from].x, points[from].y);
    for (const point of points.slice(from)) pen.lineTo(point.x, point.y);
    pen.stroke();
  }

  #changed() { this.dispatchEvent(new Event("change")); }
}
