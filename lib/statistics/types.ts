/** What the routing statistics take and tell. */

interface Shape {
  /** Rows of the counts: the model's MoE layers. */
  layers: number;
  /** Source DP ranks. */
  sources: number;
  /** Logical experts of a layer. */
  experts: number;
  /**
   * How many tokens of the sources' mean stand behind each source: the weight of the prior by which `counts()` shrinks thin
   * sources. 0: none. Default `experts`.
   */
  priorTokens?: number;
}

/** The window is one of both; without either it fades with a half-life of 2^20 tokens. */
export type RoutingStatisticsOptions = Shape &
  (
    | {
        /** Tokens, over all sources, after which a token counts half. 4 to 2^27. */
        halfLifeTokens?: number;
        windowTokens?: never;
      }
    | {
        halfLifeTokens?: never;
        /** The last so many tokens count, over all sources, and no others; rounded up to a multiple of 16. 16 to 2^27. */
        windowTokens?: number;
      }
  );

/** The experts that tokens of one source chose, as an engine tells. */
export interface RoutingObservation {
  source: number;
  /** `[tokens][layers][k]`, logical experts. */
  topk: Uint8Array | Uint16Array;
  tokens: number;
  /** Experts of a token in a layer, at most 32. */
  k: number;
  /** Must be that of the statistics where it is given. */
  layers?: number;
}

/** (token, expert) pairs of one source that were summed elsewhere. */
export interface SummedCounts {
  source: number;
  /** `[layers][experts]` */
  counts: Uint32Array;
  /** Experts of a token in a layer: what tells tokens from pairs. Default 1. */
  k?: number;
  /** Must be those of the statistics where they are given. */
  layers?: number;
  experts?: number;
}

/** How far `counts()` rests on what was observed. */
export interface RoutingConfidence {
  /** `[layers]`, 0 to 1: the weight of a source's own counts in `counts()`; the rest is the mean over the sources. */
  layers: Float64Array;
  /** `[layers][sources]`, the window's tokens; where it fades, each counts what is left of it. */
  tokens: Float64Array;
  /** `[layers][sources]`, 0 to 1: the prior's share of the row, priorTokens / (tokens + priorTokens). 1 where nothing was observed. */
  shrinkShare: Float64Array;
  /** Sources without a token in some layer: their rows are the mean's alone. */
  unobserved: number[];
  /** Sources of which more than half a row is the prior's in some layer, those without a token left out. */
  thin: number[];
}

export interface DriftOptions {
  /** Looks at one source; by default at all together. */
  source?: number;
  /** How often a call may find drift in any layer where there is none. Default 0.01. */
  falseAlarmRate?: number;
  /** A layer whose shares moved by less has not drifted, however sure that is. 0 to 1, default 0.02. */
  leastDistance?: number;
}

export interface LayerDrift {
  /** The layer's row. */
  layer: number;
  /** Total variation between the experts' shares, recent and before: the share of pairs that go elsewhere, noise included. */
  distance: number;
  /** The chi-square distance between both, over its mean if the order of the batches meant nothing: about 1 without drift. */
  ratio: number;
  /** How often chance alone would show some layer such a ratio: adjusted for the number of layers. */
  pValue: number;
  drifted: boolean;
}

export interface Drift {
  /** False where there is too little to tell, and `layers` is empty then. */
  ready: boolean;
  /** Whether any layer has. */
  drifted: boolean;
  /** Batches that were compared, and how many of them, the newest, are recent. */
  batches: number;
  recent: number;
  /** Orders that the observed one was compared with, itself included. */
  orders: number;
  layers: LayerDrift[];
}
