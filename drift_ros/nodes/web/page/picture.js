// SPDX-License-Identifier: Apache-2.0
// The picture and what is drawn above it. Coordinates are pixels of the camera's frame.

/** Read a picture's message: 4 bytes with the head's length, its JSON, the JPEG. */
export async function readPicture(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const blob = new Blob([new Uint8Array(buffer, 4 + length)], { type: 'image/jpeg' });
  return { head, image: await createImageBitmap(blob) };
}

/** Dark or light letters, whichever is readable on a colour #rrggbb. */
function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 128 ? '#000' : '#fff';
}

export class Picture {
  constructor(stage, picture, marks) {
    this.stage = stage;
    this.picture = picture;
    this.marks = marks;
    this.width = 0;
    this.height = 0;
    new ResizeObserver(() => { this.fit(); this.redraw(); }).observe(stage);
    this.redraw = () => {};
  }

  show({ head, image }) {
    if (head.width !== this.width || head.height !== this.height) {
      this.width = head.width;
      this.height = head.height;
      this.stage.style.setProperty('--tall', `${(100 * head.height) / head.width}vw`);
      this.fit();
    }
    if (this.picture.width !== image.width || this.picture.height !== image.height) {
      this.picture.width = image.width;
      this.picture.height = image.height;
    }
    this.picture.getContext('2d').drawImage(image, 0, 0);
  }

  /** Lay both canvases over the largest part of the stage that has the picture's shape. */
  fit() {
    if (!this.width) return;
    const room = { width: this.stage.clientWidth, height: this.stage.clientHeight };
    const scale = Math.min(room.width / this.width, room.height / this.height);
    const [width, height] = [this.width * scale, this.height * scale];
    for (const canvas of [this.picture, this.marks]) {
      canvas.style.left = `${(room.width - width) / 2}px`;
      canvas.style.top = `${(room.height - height) / 2}px`;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const dense = window.devicePixelRatio || 1;
    this.marks.width = Math.max(Math.round(width * dense), 1);
    this.marks.height = Math.max(Math.round(height * dense), 1);
    this.scale = this.marks.width / this.width;
  }

  /** The pixel under a pointer, kept inside the frame; null before there is a picture. */
  at(event) {
    const area = this.marks.getBoundingClientRect();
    if (!this.width || !area.width) return null;
    const x = ((event.clientX - area.left) / area.width) * this.width;
    const y = ((event.clientY - area.top) / area.height) * this.height;
    return this.inside(x, y);
  }

  inside(x, y) {
    return [
      Math.min(Math.max(x, 0), this.width - 0.01),
      Math.min(Math.max(y, 0), this.height - 0.01),
    ];
  }

  /**
   * Draw objects and marks. `scene` has objects, masks, lit (an id), points, box, proposal
   * (outlines), cross.
   */
  draw(scene) {
    if (!this.width) return;
    const pen = this.marks.getContext('2d');
    const dense = window.devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.marks.width, this.marks.height);
    pen.lineJoin = 'round';
    const faint = scene.proposal || scene.points.length || scene.box ? 0.45 : 1;
    for (const object of scene.objects) {
      const outlines = scene.masks[object.id];
      if (!outlines) continue;
      const lit = scene.lit === object.id;
      const path = this.path(outlines);
      pen.globalAlpha = (lit ? 0.6 : 0.38) * faint;
      pen.fillStyle = object.color;
      pen.fill(path, 'evenodd');
      pen.globalAlpha = faint;
      pen.lineWidth = (lit ? 4 : 3) * dense;
      pen.strokeStyle = '#fff';
      pen.stroke(path);
      pen.lineWidth = (lit ? 2.5 : 1.5) * dense;
      pen.strokeStyle = object.color;
      pen.stroke(path);
    }
    for (const object of scene.objects) {
      if (object.box) this.label(pen, object, dense, faint);
    }
    pen.globalAlpha = 1;
    if (scene.proposal) this.proposal(pen, scene.proposal, dense);
    if (scene.box) {
      const [x0, y0, x1, y1] = scene.box.map((value) => value * this.scale);
      this.twice(pen, dense, () => pen.strokeRect(x0, y0, x1 - x0, y1 - y0));
    }
    for (const [x, y, on] of scene.points) this.point(pen, x, y, on, dense);
    if (scene.cross) {
      const [x, y] = scene.cross.map((value) => value * this.scale);
      this.twice(pen, dense, () => {
        pen.beginPath();
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
          pen.moveTo(x + 5 * dx * dense, y + 5 * dy * dense);
          pen.lineTo(x + 20 * dx * dense, y + 20 * dy * dense);
        }
        pen.stroke();
      });
    }
  }

  path(outlines) {
    const path = new Path2D();
    for (const polygon of outlines) {
      path.moveTo(polygon[0] * this.scale, polygon[1] * this.scale);
      for (let i = 2; i < polygon.length; i += 2) {
        path.lineTo(polygon[i] * this.scale, polygon[i + 1] * this.scale);
      }
      path.closePath();
    }
    return path;
  }

  /** A line that is seen on anything: light on dark. */
  twice(pen, dense, stroke) {
    pen.lineWidth = 4 * dense;
    pen.strokeStyle = 'rgb(0 0 0 / 70%)';
    stroke();
    pen.lineWidth = 2 * dense;
    pen.strokeStyle = '#fff';
    stroke();
  }

  proposal(pen, outlines, dense) {
    const path = this.path(outlines);
    pen.fillStyle = 'rgb(64 156 255 / 45%)';
    pen.fill(path, 'evenodd');
    this.twice(pen, dense, () => pen.stroke(path));
    pen.setLineDash([6 * dense, 6 * dense]);
    pen.strokeStyle = '#1668e3';
    pen.stroke(path);
    pen.setLineDash([]);
  }

  point(pen, x, y, on, dense) {
    const size = 7 * dense;
    pen.beginPath();
    pen.arc(x * this.scale, y * this.scale, size, 0, 7);
    pen.fillStyle = on ? '#12a150' : '#d92d20';
    pen.fill();
    pen.lineWidth = 2 * dense;
    pen.strokeStyle = '#fff';
    pen.stroke();
    pen.beginPath(); // a plus or a minus: not told by colour alone
    pen.moveTo(x * this.scale - size / 2, y * this.scale);
    pen.lineTo(x * this.scale + size / 2, y * this.scale);
    if (on) {
      pen.moveTo(x * this.scale, y * this.scale - size / 2);
      pen.lineTo(x * this.scale, y * this.scale + size / 2);
    }
    pen.stroke();
  }

  label(pen, object, dense, faint) {
    const [x0, y0, x1, y1] = object.box.map((value) => value * this.scale);
    pen.globalAlpha = 0.9 * faint;
    pen.lineWidth = 1.5 * dense;
    pen.strokeStyle = object.color;
    pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    pen.font = `600 ${13 * dense}px system-ui, sans-serif`;
    let text = object.name;
    if (text.length > 28) text = `${text.slice(0, 27)}…`;
    const wide = pen.measureText(text).width + 12 * dense;
    const tall = 20 * dense;
    const left = Math.min(Math.max(x0, 0), Math.max(this.marks.width - wide, 0));
    const top = y0 >= tall ? y0 - tall : Math.min(y0, this.marks.height - tall);
    pen.fillStyle = object.color;
    pen.fillRect(left, top, wide, tall);
    pen.fillStyle = inkOn(object.color);
    pen.textBaseline = 'middle';
    pen.fillText(text, left + 6 * dense, top + tall / 2);
  }
}
