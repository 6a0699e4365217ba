"use strict";
// Where two texts differ: [start, end] of what only one of them says, in units of JavaScript's strings.

// Words are compared only up to so many products of their numbers.
const MOST_CELLS = 4e6;

// Letters with their marks, such as vowels of Hindi and Arabic; of Chinese and Japanese, which have no spaces, each
// character. Any other sign is one of its own.
const OF_ITSELF = "\\p{sc=Han}\\p{sc=Hira}\\p{sc=Kana}";
const WORDS = new RegExp(`[${OF_ITSELF}]\\p{M}*|(?:(?![${OF_ITSELF}])[\\p{L}\\p{M}\\p{N}_])+|[^\\s\\p{L}\\p{M}\\p{N}_]`, "gu");

function words(text) {
  return [...text.matchAll(WORDS)].map((match) => [match.index, match.index + match[0].length, match[0]]);
}

// Words that differ, with the spaces between those that follow each other.
function joined(text, spans) {
  const found = [];
  for (const [from, to] of spans) {
    const last = found.at(-1);
    if (last && !text.slice(last[1], from).trim()) last[1] = to;
    else found.push([from, to]);
  }
  return found;
}

// Places of the words of each side that are not in a longest common sequence of words.
function differing(one, other) {
  const a = words(one), b = words(other);
  let low = 0, highA = a.length, highB = b.length;
  while (low < highA && low < highB && a[low][2] === b[low][2]) low++;
  while (highA > low && highB > low && a[highA - 1][2] === b[highB - 1][2]) { highA--; highB--; }
  const rows = highA - low, columns = highB - low, keptA = new Set(), keptB = new Set();
  if (rows && columns && rows * columns <= MOST_CELLS) {
    const width = columns + 1, table = new Uint16Array((rows + 1) * width);
    for (let i = rows - 1; i >= 0; i--) {
      for (let j = columns - 1; j >= 0; j--) {
        table[i * width + j] = a[low + i][2] === b[low + j][2] ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
      }
    }
    for (let i = 0, j = 0; i < rows && j < columns;) {
      if (a[low + i][2] === b[low + j][2]) { keptA.add(low + i++); keptB.add(low + j++); }
      else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
      else j++;
    }
  }
  const rest = (list, high, kept) => list.slice(low, high).filter((_, at) => !kept.has(low + at)).map(([from, to]) => [from, to]);
  return [rest(a, highA, keptA), rest(b, highB, keptB)];
}
