// SPDX-License-Identifier: Apache-2.0
// The page: what a person does becomes wishes, what the node says becomes what is shown. Texts
// from outside are only ever set as text.
import { Picture, readPicture } from './picture.js';

const $ = (id) => document.getElementById(id);
const picture = new Picture($('stage'), $('picture'), $('marks'));
const DRAG = 6; // CSS pixels a pointer moves before it draws a box
const PRESS = 550; // milliseconds a finger rests to say "not on it"

const now = {
  head: null, // of the picture shown
  stopped: false,
  points: [],
  box: null,
  order: [], // what was marked, to take it back
  target: 0, // id of the object that is corrected; 0: a new one
  proposal: null, // {proposal, outlines, score, area}
  cross: null,
  corner: null, // where a box was begun with the keyboard
  lit: 0,
  press: null, // pointer that is down
  asked: 0, // number of the last segment wish
  busy: false,
  robot: { follower: '', on: false, target: 0 },
  halting: false, // the robot is to stop, and the node has not answered yet
};

// ---- the connection

let socket = null;
let wait = 500;
let count = 0;
const answers = new Map();

function connect() {
  socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/socket`);
  socket.binaryType = 'arraybuffer';
  socket.onopen = () => {
    wait = 500;
    count = 0;
    if (now.halting) halt(); // it was wanted while there was no connection
  };
  socket.onmessage = ({ data }) => (typeof data === 'string' ? told(JSON.parse(data)) : seen(data));
  socket.onclose = (event) => {
    for (const [, done] of answers) done({ error: 'The connection was lost before the answer came.', lost: true });
    answers.clear();
    status(2, event.reason || 'The connection to this page’s node is lost; trying again …');
    count += 1;
    setTimeout(count % 4 === 3 ? check : connect, wait);
    wait = Math.min(wait * 1.6, 5000);
  };
}

/** After some failures, see whether it is the token: a socket does not say. */
async function check() {
  try {
    const answer = await fetch('/', { cache: 'no-store' });
    if (answer.status === 403) {
      status(2, 'The node was started anew with another token: open the address it printed.');
      setTimeout(check, 5000);
      return;
    }
  } catch { /* it is not there yet */ }
  connect();
}

function send(wish) {
  if (socket?.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(wish));
  return true;
}

function ask(wish) {
  const id = (ask.last = (ask.last ?? 0) + 1);
  return new Promise((done) => {
    answers.set(id, done);
    if (!send({ ...wish, id })) {
      answers.delete(id);
      done({ error: 'There is no connection to the node just now.', lost: true });
    }
  });
}

async function seen(data) {
  let got = null;
  try {
    got = await readPicture(data);
  } catch {
    note('A picture could not be decoded.');
  }
  // a page that is not looked at draws nothing, asks for nothing, and costs nothing
  requestAnimationFrame(() => {
    if (got) {
      if (now.stopped) {
        got.image.close();
      } else {
        now.head = got.head;
        picture.show(got);
        got.image.close();
        $('empty').hidden = true;
        draw();
        list(got.head.objects);
        $('latency').textContent = got.head.latency === null ? '–' : milliseconds(got.head.latency);
      }
      send({ do: 'shown', stamp: got.head.stamp });
    }
  });
}

function milliseconds(seconds) {
  // clocks that differ make latencies of years
  return seconds > -1 && seconds < 3600 ? `${Math.round(1000 * seconds)} ms` : '?';
}

function told(message) {
  if (message.type === 'answer') {
    answers.get(message.id)?.(message);
    answers.delete(message.id);
  } else if (message.type === 'status') {
    send({ do: 'pong', ping: message.ping });
    takeStatus(message);
  } else if (message.type === 'thumbnail') {
    thumbs.set(message.object, message.url);
    const row = rows.get(message.object);
    if (row) picturesOf(row, message.object);
  } else if (message.type === 'robot') {
    takeRobot(message);
  } else if (message.type === 'notice') {
    note(message.text);
  } else if (message.type === 'refusal') {
    refuse(message.text);
  }
}

function takeStatus(message) {
  const v = message.values;
  const text = `${message.tracker}: ${message.text}`;
  status(message.present ? message.level : 2, text);
  const rate = (key) => (v[key] === undefined || v[key] === 'nan' ? '–' : Number(v[key]).toFixed(1));
  $('rate').textContent = message.present ? `${rate('rate out (Hz)')} / ${rate('rate in (Hz)')} Hz` : '–';
  $('dropped').textContent = message.present ? (v['frames dropped'] ?? '–') : '–';
  if (!message.present) {
    $('latency').textContent = '–';
    if (!now.stopped) list([]);
    thumbs.clear();
  }
  $('empty').textContent = message.present
    ? (message.camera ? `Waiting for the first picture on ${message.camera} …` : 'The tracker listens to no camera: it is not active yet.')
    : `Waiting for ${message.tracker} …`;
}

function status(level, words) {
  $('status').dataset.level = level;
  if ($('status-text').textContent === words) return;
  $('status-text').textContent = words;
  $('status').title = words;
}

// ---- marking

function stop() {
  if (now.stopped || !now.head) return Boolean(now.head);
  now.stopped = true;
  send({ do: 'hold', stamp: now.head.stamp });
  show();
  return true;
}

function goOn() {
  Object.assign(now, {
    stopped: false, points: [], box: null, order: [], target: 0, proposal: null, cross: null,
    corner: null, asked: now.asked + 1, busy: false,
  });
  $('name').value = '';
  refuse('');
  send({ do: 'go' });
  show();
}

function mark(point, on) {
  now.order.push({ box: now.box });
  now.points.push([...point, on]);
  propose();
}

function enclose(box) {
  now.order.push({ box: now.box, points: now.points.length });
  now.box = box;
  propose();
}

function undo() {
  const last = now.order.pop();
  if (!last) return;
  if (last.points === undefined) now.points.pop();
  else now.box = last.box;
  if (now.order.length) propose();
  else {
    now.proposal = null;
    now.asked += 1;
    now.busy = false;
    refuse('');
    show();
  }
}

async function propose() {
  const mine = (now.asked += 1);
  now.busy = true;
  now.proposal = null;
  refuse('');
  show();
  // marks that come quickly are asked about once
  await new Promise((done) => setTimeout(done, 60));
  if (mine !== now.asked) return;
  const got = await ask({ do: 'segment', stamp: now.head.stamp, box: now.box, points: now.points });
  if (mine !== now.asked) return; // more was marked, or all given up
  now.busy = false;
  if (got.error) refuse(got.error);
  else now.proposal = got;
  if (got.proposal) say(`A mask of ${got.area} pixels is proposed.`);
  show();
}

async function follow() {
  const chosen = now.proposal;
  if (!chosen || now.busy) return;
  now.busy = true;
  show();
  const { target } = now;
  const mine = now.asked;
  const name = $('name').value.trim();
  const got = await ask({ do: 'follow', proposal: chosen.proposal, name, object: target });
  if (mine !== now.asked) return;
  now.busy = false;
  if (got.error) {
    refuse(got.error);
    show();
    return;
  }
  const done = target ? `Corrected ${calledOf(target)}.` : `Following ${name || `object ${got.object}`}.`;
  toast(got.note ? `${done} ${got.note}` : done);
  if (got.note) note(got.note);
  goOn();
}

function correct(id) {
  if (now.stopped && now.target === id) return;
  if (now.stopped) goOn();
  if (!stop()) return;
  now.target = id;
  show();
  $('stage').focus({ preventScroll: true });
  $('stage').scrollIntoView({ block: 'nearest' });
}

/** Let everything but the picture's content fit what is being done. */
function show() {
  const marked = now.order.length > 0;
  $('stage').classList.toggle('stopped', now.stopped);
  $('frozen').hidden = !now.stopped;
  $('choice').classList.toggle('idle', !now.stopped);
  document.querySelector('.name').style.visibility = now.target ? 'hidden' : '';
  $('undo').disabled = !marked;
  $('follow').disabled = !now.proposal || now.busy;
  $('follow').textContent = now.target ? 'Correct' : 'Follow';
  let hint = 'Click on an object, or drag a box around it. The picture stops as you press.';
  if (now.stopped) {
    const what = now.target ? `Correcting ${calledOf(now.target)}` : 'The picture is stopped';
    hint = `${what}: click on the object, or drag a box around it.`;
    if (now.corner) hint = 'Move the cross to the opposite corner and press b again.';
    else if (now.busy) hint = marked ? 'Looking …' : hint;
    else if (now.proposal) {
      const sure = Math.round(100 * now.proposal.score);
      hint = `${now.proposal.area.toLocaleString()} pixels, expected quality ${sure} %. Mend it with clicks, or ${now.target ? 'correct' : 'follow'}.`;
    }
  }
  if ($('hint').textContent !== hint) $('hint').textContent = hint;
  for (const [id, row] of rows) row.classList.toggle('target', now.target === id);
  draw();
}

function draw() {
  picture.draw({
    objects: now.head?.objects ?? [],
    masks: now.head?.masks ?? {},
    lit: now.lit || now.target,
    points: now.points,
    box: now.press?.box ?? (now.corner && now.cross ? boxOf(now.corner, now.cross) : now.box),
    proposal: now.proposal?.outlines,
    cross: now.cross,
  });
}
picture.redraw = draw;

function boxOf([x0, y0], [x1, y1]) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}

const stage = $('stage');
stage.addEventListener('contextmenu', (event) => event.preventDefault());
stage.addEventListener('pointerdown', (event) => {
  if (now.press || event.button === 1) return;
  event.preventDefault();
  stage.focus({ preventScroll: true });
  const point = picture.at(event);
  if (!point) return;
  const fresh = !now.stopped;
  if (!stop()) return;
  now.cross = null;
  now.corner = null;
  stage.setPointerCapture(event.pointerId);
  const off = event.button === 2 || event.shiftKey
    || document.querySelector('input[name=mode]:checked').value === 'off';
  now.press = { id: event.pointerId, point, x: event.clientX, y: event.clientY, off, box: null, fresh };
  if (event.pointerType === 'touch') {
    now.press.timer = setTimeout(() => {
      if (now.press && !now.press.box) {
        now.press.off = true;
        navigator.vibrate?.(25);
      }
    }, PRESS);
  }
});
stage.addEventListener('pointermove', (event) => {
  const { press } = now;
  if (!press || press.id !== event.pointerId) return;
  const far = Math.hypot(event.clientX - press.x, event.clientY - press.y) > DRAG;
  if (far || press.box) {
    press.box = boxOf(press.point, picture.at(event));
    draw();
  }
});
stage.addEventListener('pointerup', (event) => {
  const { press } = now;
  if (!press || press.id !== event.pointerId) return;
  now.press = null;
  clearTimeout(press.timer);
  if (press.box) enclose(press.box);
  else mark(press.point, !press.off);
});
stage.addEventListener('pointercancel', () => {
  if (!now.press) return;
  clearTimeout(now.press.timer);
  const { fresh } = now.press;
  now.press = null;
  if (fresh) goOn();
  else draw();
});

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
stage.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!(key in ARROWS) && ![' ', 'x', 'b', 'Backspace'].includes(key)) return;
  event.preventDefault();
  if (!stop()) return;
  if (!now.cross) now.cross = [picture.width / 2, picture.height / 2];
  if (key in ARROWS) {
    const step = Math.max(picture.width, picture.height) * (event.shiftKey ? 0.05 : 0.01);
    const [x, y] = now.cross;
    now.cross = picture.inside(x + ARROWS[key][0] * step, y + ARROWS[key][1] * step);
    draw();
  } else if (key === 'Backspace') {
    now.corner = null;
    undo();
  } else if (key === 'b') {
    if (now.corner) {
      const box = boxOf(now.corner, now.cross);
      now.corner = null;
      enclose(box);
    } else {
      now.corner = now.cross;
      show();
    }
  } else {
    mark(now.cross, key === ' ');
  }
});
document.addEventListener('keydown', (event) => {
  const typing = event.target.matches?.('input[type=text]');
  const alone = !(typing || event.repeat || event.ctrlKey || event.altKey || event.metaKey);
  if (event.key.toLowerCase() === 's' && alone && now.robot.follower) halt(); // in dialogs, too
  if (document.querySelector('dialog[open]')) return;
  if (event.key === 'Escape' && now.stopped && !event.target.matches?.('.called')) {
    event.preventDefault();
    goOn();
  } else if (event.key === 'Enter' && event.target === stage) {
    event.preventDefault();
    follow();
  } else if (event.key === '?' && !typing) {
    $('help').showModal();
  }
});
$('bar').addEventListener('submit', (event) => { event.preventDefault(); follow(); });
$('undo').addEventListener('click', undo);
$('cancel').addEventListener('click', goOn);
$('help-open').addEventListener('click', () => $('help').showModal());

// ---- objects

const rows = new Map();
const thumbs = new Map();
const states = new Map();
const names = new Map();

function calledOf(id) {
  return names.get(id) ?? `object ${id}`;
}

function list(objects) {
  const live = new Set(objects.map((object) => object.id));
  for (const [id, row] of rows) {
    if (live.has(id)) continue;
    if (row.contains(document.activeElement)) $('stage').focus({ preventScroll: true });
    row.remove();
    for (const known of [rows, states, names, thumbs]) known.delete(id);
    if (now.lit === id) now.lit = 0;
  }
  for (const object of objects) {
    let row = rows.get(object.id);
    if (!row) {
      row = make(object.id);
      rows.set(object.id, row);
      $('objects').append(row);
    }
    fill(row, object);
  }
  $('none').hidden = objects.length > 0;
  $('reset').disabled = objects.length === 0;
  text($('count'), objects.length ? String(objects.length) : '');
}

function make(id) {
  const row = $('object').content.firstElementChild.cloneNode(true);
  row.dataset.id = id;
  const called = row.querySelector('.called');
  const rename = async () => {
    if (called.value.trim() === calledOf(id)) return;
    const wanted = called.value;
    const got = await ask({ do: 'rename', object: id, name: wanted });
    if (got.error) {
      called.value = calledOf(id);
      toast(got.error);
      note(got.error);
    }
  };
  called.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') called.blur();
    if (event.key === 'Escape') { called.value = calledOf(id); called.blur(); }
  });
  called.addEventListener('change', rename);
  row.querySelector('.correct').addEventListener('click', () => correct(id));
  row.querySelector('.remove').addEventListener('click', async () => {
    if (!(await sure(`Stop following ${calledOf(id)}? What was learnt of it is forgotten.`))) return;
    const got = await ask({ do: 'remove', object: id });
    if (got.error) { toast(got.error); note(got.error); }
  });
  row.querySelector('.drive').addEventListener('click', () => (driven(id) ? halt() : drive(id)));
  for (const [kind, lit] of [['pointerenter', id], ['pointerleave', 0], ['focusin', id], ['focusout', 0]]) {
    row.addEventListener(kind, () => { now.lit = lit; draw(); });
  }
  return row;
}

function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

function fill(row, object) {
  const called = row.querySelector('.called');
  names.set(object.id, object.name);
  if (document.activeElement !== called && called.value !== object.name) called.value = object.name;
  if (called.dataset.of !== object.name) {
    called.dataset.of = object.name;
    called.setAttribute('aria-label', `Name of object ${object.id}, ${object.name}`);
    row.querySelector('.correct').setAttribute('aria-label', `Correct ${object.name}`);
    row.querySelector('.remove').setAttribute('aria-label', `Remove ${object.name}`);
  }
  offer(row, object.id);
  row.style.setProperty('--of', object.color);
  const state = row.querySelector('.state');
  text(state, object.state);
  state.dataset.is = object.state;
  for (const meter of row.querySelectorAll('.meter')) {
    const value = object[meter.dataset.of];
    const percent = value === null ? 0 : Math.round(100 * value);
    text(meter.querySelector('.number'), value === null ? '–' : `${percent} %`);
    meter.querySelector('.fill').style.width = `${percent}%`;
  }
  const before = states.get(object.id);
  states.set(object.id, object.state);
  if (before && before !== object.state && 'waiting' !== before) say(`${object.name}: ${object.state}`);
  picturesOf(row, object.id);
}

function picturesOf(row, id) {
  const image = row.querySelector('img');
  const url = thumbs.get(id);
  if (url && image.src !== url) image.src = url;
  image.hidden = !url;
}

$('reset').addEventListener('click', async () => {
  if (!(await sure('Forget all objects, for everybody who looks at this tracker?'))) return;
  const got = await ask({ do: 'reset' });
  if (got.error) { toast(got.error); note(got.error); }
});

// ---- the robot

function takeRobot(robot) {
  const before = now.robot;
  now.robot = robot;
  if (before.on !== robot.on || (robot.on && before.target !== robot.target)) {
    if (robot.on && robot.target) say(`The robot follows ${calledOf(robot.target)}.`);
    else say(robot.on ? 'The robot waits for an object.' : 'The robot is off.');
  }
  const here = Boolean(robot.follower);
  $('robot').hidden = !here;
  $('robot').dataset.level = robot.level;
  const words = `${robot.follower}: ${robot.text}`;
  text($('robot-text'), words);
  $('robot-text').title = words;
  for (const button of document.querySelectorAll('dialog .halt')) button.hidden = !here;
  for (const [id, row] of rows) offer(row, id);
  // a node that has just come back knows of no robot yet when it is told to stop it
  if (now.halting && robot.on && !halt.asked) halt();
}

function driven(id) {
  return now.robot.on && now.robot.target === id;
}

/** Show in an object's row whether the robot follows it, or could. */
function offer(row, id) {
  const button = row.querySelector('.drive');
  const here = Boolean(now.robot.follower);
  const its = here && driven(id);
  const name = calledOf(id);
  button.hidden = !here;
  row.querySelector('.driven').hidden = !its;
  text(button, its ? 'Stop robot' : 'Follow with robot');
  button.classList.toggle('danger', its);
  button.setAttribute('aria-label', its ? `Stop the robot, which follows ${name}` : `Follow ${name} with the robot`);
}

async function drive(id) {
  if (!(await sure(`Let the robot follow ${calledOf(id)}? It avoids no obstacles.`))) return;
  const name = calledOf(id);
  now.halting = false; // what was to stop before is no longer to stop
  const got = await ask({ do: 'drive', object: id });
  if (got.error) { toast(got.error); note(got.error); } else toast(`The robot follows ${name}.`);
}

/** Stop the robot, without a question; sent again, until it is, whenever a robot is told to be on. */
async function halt() {
  now.halting = true;
  halt.asked = (halt.asked ?? 0) + 1;
  const got = await ask({ do: 'halt' });
  halt.asked -= 1;
  now.halting = Boolean(got.error);
  if (got.error) {
    toast(`The robot may still drive! ${got.error}`);
    note(got.error);
  } else {
    toast('The robot is stopped.');
  }
}

for (const button of document.querySelectorAll('.halt')) button.addEventListener('click', halt);

/** Ask yes or no; Escape is no. */
function sure(question) {
  const dialog = $('sure');
  $('sure-text').textContent = question;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener('close', () => done(dialog.returnValue === 'yes'), { once: true });
  });
}

// ---- what is said

function refuse(words) {
  text($('refusal'), words);
  if (words) note(words);
}

function note(words) {
  const item = document.createElement('li');
  const time = document.createElement('time');
  time.textContent = new Date().toLocaleTimeString();
  item.append(time, words);
  $('log').prepend(item);
  while ($('log').childElementCount > 50) $('log').lastElementChild.remove();
  text($('log-count'), String($('log').childElementCount));
}

function toast(words) {
  text($('toast'), words);
  $('toast').classList.add('on');
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => $('toast').classList.remove('on'), 2500 + 50 * words.length);
}

function say(words) {
  text($('say'), words);
}

show();
connect();
