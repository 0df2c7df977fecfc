// Pictures in folds are unpacked when they are opened; values where the pointer rests; switches.
const hover = document.getElementById('hover');

async function unpack(box) {
  const packed = box.dataset.packed;
  delete box.dataset.packed;
  const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  box.innerHTML = await new Response(stream).text();
  enliven(box);
}

function enliven(box) {
  for (const title of box.querySelectorAll('.point > title')) {
    title.parentNode.dataset.told = title.textContent;
    title.remove(); // or the browser shows it as well
  }
  const parts = [...box.querySelectorAll('[data-switch]')];
  const names = [...new Set(parts.map(part => part.dataset.switch))];
  if (!names.length) return;
  const row = document.createElement('div');
  row.className = 'switches';
  for (const name of names) {
    const label = document.createElement('label');
    const input = document.createElement('input');
    input.type = 'checkbox';
    input.checked = true;
    input.onchange = () => {
      for (const part of parts) {
        if (part.dataset.switch === name) part.classList.toggle('off', !input.checked);
      }
    };
    label.append(input, name);
    row.append(label);
  }
  box.after(row);
}

for (const box of document.querySelectorAll('.picture:not([data-packed])')) enliven(box);

// Folds do not tell their parents that they are opened.
document.addEventListener('toggle', event => {
  if (!event.target.open) return;
  for (const box of event.target.querySelectorAll('[data-packed]')) {
    if (box.closest('details') === event.target) unpack(box);
  }
}, true);

document.addEventListener('pointerover', event => {
  const point = event.target.closest('[data-told]');
  hover.hidden = !point;
  if (!point) return;
  hover.textContent = point.dataset.told;
  const width = document.documentElement.clientWidth - hover.offsetWidth - 8;
  hover.style.left = `${Math.max(8, Math.min(event.clientX + 12, width))}px`;
  hover.style.top = `${Math.max(8, event.clientY - hover.offsetHeight - 12)}px`;
});
