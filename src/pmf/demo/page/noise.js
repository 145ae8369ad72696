// The noise of image `index` of a seed, as pmf draws it (src/pmf/randomness.py): numpy's default generator, number for
// number. numpy seeds PCG64 from a list of integers by SeedSequence (NEP 19; O'Neill, "Developing a seed_seq
// Alternative", 2015; "PCG", HMC-CS-2014-0905, variant XSL-RR 128/64), and draws float32 normals by the ziggurat of
// Marsaglia and Tsang (J. Stat. Software 5(8), 2000) with 256 layers, from 32 bits each.

const IMAGE_NOISE = 5; // pmf.randomness.Stream
const POOL_WORDS = 4;

/** Words of 32 bits of a non-negative integer, the lowest first; 0 has one. */
function wordsOf(number) {
  const words = [];
  let rest = BigInt(number);
  do {
    words.push(Number(rest & 0xffffffffn));
    rest >>= 32n;
  } while (rest > 0n);
  return words;
}

/** The 256 bits that SeedSequence makes of integers, as four BigInts of 64. */
function seedState(integers) {
  const entropy = integers.flatMap(wordsOf);
  let hash = 0x43b0d7e5;
  const mixedIn = (value) => {
    value ^= hash;
    hash = Math.imul(hash, 0x931e8875);
    value = Math.imul(value, hash);
    return value ^ (value >>> 16);
  };
  const mix = (x, y) => {
    const mixed = Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715);
    return mixed ^ (mixed >>> 16);
  };
  const pool = Array.from({ length: POOL_WORDS }, (_, i) => mixedIn(entropy[i] ?? 0));
  for (let from = 0; from < POOL_WORDS; from++)
    for (let to = 0; to < POOL_WORDS; to++) if (from !== to) pool[to] = mix(pool[to], mixedIn(pool[from]));
  for (const word of entropy.slice(POOL_WORDS))
    for (let to = 0; to < POOL_WORDS; to++) pool[to] = mix(pool[to], mixedIn(word));

  hash = 0x8b51f9dd;
  const words = Array.from({ length: 8 }, (_, i) => {
    let value = pool[i % POOL_WORDS] ^ hash;
    hash = Math.imul(hash, 0x58f38ded);
    value = Math.imul(value, hash);
    return BigInt((value ^ (value >>> 16)) >>> 0);
  });
  return [0, 2, 4, 6].map((i) => words[i] | (words[i + 1] << 32n));
}

/** A function that returns the next 32 bits of PCG64. */
function bitsOf(integers) {
  const multiplier = 0x2360ed051fc65da44385df649fccf645n;
  const low64 = 0xffffffffffffffffn;
  const [high, low, streamHigh, streamLow] = seedState(integers);
  const increment = BigInt.asUintN(128, (((streamHigh << 64n) | streamLow) << 1n) | 1n);
  const next = (state) => BigInt.asUintN(128, state * multiplier + increment);
  let state = next(BigInt.asUintN(128, increment + ((high << 64n) | low)));
  let kept = -1; // the upper half of the last 64 bits
  return () => {
    if (kept >= 0) {
      const upper = kept;
      kept = -1;
      return upper;
    }
    state = next(state);
    const folded = (state >> 64n) ^ (state & low64);
    const turn = state >> 122n;
    const bits = BigInt.asUintN(64, (folded >> turn) | (folded << (64n - turn)));
    kept = Number(bits >> 32n);
    return Number(bits & 0xffffffffn);
  };
}

const START_OF_TAIL = 3.6541528853610087963519472518;
const LAYER_AREA = 0.0049286732339746519;

/** Of each layer: width / 2^23 and height as float32, and below which of 2^23 places a point is surely inside. */
const LAYERS = (() => {
  const places = 2 ** 23;
  const density = (x) => Math.exp(-0.5 * x * x);
  const inside = new Uint32Array(256);
  const width = new Float32Array(256);
  const height = new Float32Array(256);
  const base = LAYER_AREA / density(START_OF_TAIL);
  inside[0] = Math.round((START_OF_TAIL / base) * places);
  width[0] = base / places;
  height[0] = 1;
  width[255] = START_OF_TAIL / places;
  height[255] = density(START_OF_TAIL);
  for (let i = 254, outer = START_OF_TAIL; i >= 1; i--) {
    const x = Math.sqrt(-2 * Math.log(LAYER_AREA / outer + density(outer)));
    inside[i + 1] = Math.round((x / outer) * places);
    width[i] = x / places;
    height[i] = density(x);
    outer = x;
  }
  return { inside, width, height };
})();

/**
 * Standard normal noise.
 * @param {number} seed from 0
 * @param {number} index number of the image, from 0
 * @param {number} count how many values: channels * height * width
 * @returns {Float32Array}
 */
export function imageNoise(seed, index, count) {
  const { inside, width, height } = LAYERS;
  const { fround } = Math;
  const bits = bitsOf([IMAGE_NOISE, seed, index]);
  const uniform = () => (bits() >>> 8) / 2 ** 24; // exact in float32
  const start = fround(START_OF_TAIL);
  const inverse = fround(1 / START_OF_TAIL);
  // numpy takes the logarithm in float32: beyond START_OF_TAIL, one value of 4,000, the last bit may differ.
  const log1m = (u) => fround(Math.log1p(-u));

  const tail = (place) => {
    for (;;) {
      const x = fround(-inverse * log1m(uniform()));
      const y = -log1m(uniform());
      if (fround(y + y) > fround(x * x)) return ((place >>> 8) & 1 ? -1 : 1) * fround(start + x);
    }
  };
  const draw = () => {
    for (;;) {
      const word = bits();
      const layer = word & 0xff;
      const place = (word >>> 9) & 0x7fffff;
      const distance = fround(place * width[layer]);
      const x = (word >>> 8) & 1 ? -distance : distance;
      if (place < inside[layer]) return x;
      if (layer === 0) return tail(place);
      const step = fround(fround(height[layer - 1] - height[layer]) * uniform());
      if (fround(step + height[layer]) < Math.exp(-0.5 * x * x)) return x;
    }
  };
  return Float32Array.from({ length: count }, draw);
}
