/**
 * The wire of Envoy's external processor (envoy.service.ext_proc.v3) and of grpc.health.v1: what an endpoint picker reads and
 * writes of them, by the field numbers of the public protos. Fields that are not here are skipped on reading, as Protocol Buffers
 * want it.
 */
import { fromJSON, type MethodDefinition } from '@grpc/proto-loader';

/** [type, number] */
type Field = readonly [type: string, id: number];

const message = (fields: Record<string, Field>, oneof: Record<string, readonly string[]> = {}) => ({
  fields: Object.fromEntries(Object.entries(fields).map(([name, [type, id]]) => [name, { type, id }])),
  oneofs: Object.fromEntries(Object.entries(oneof).map(([name, of]) => [name, { oneof: [...of] }])),
});
const list = (name: string, type: string, id: number) => ({
  fields: { [name]: { rule: 'repeated', type, id } },
});
const map = (name: string, type: string, id: number) => ({
  fields: { [name]: { keyType: 'string', type, id } },
});

const REQUESTS = {
  requestHeaders: ['HttpHeaders', 2],
  responseHeaders: ['HttpHeaders', 3],
  requestBody: ['HttpBody', 4],
  responseBody: ['HttpBody', 5],
  requestTrailers: ['HttpTrailers', 6],
  responseTrailers: ['HttpTrailers', 7],
} as const;

const RESPONSES = {
  requestHeaders: ['CommonAnswer', 1],
  responseHeaders: ['CommonAnswer', 2],
  requestBody: ['CommonAnswer', 3],
  responseBody: ['CommonAnswer', 4],
  requestTrailers: ['TrailersResponse', 5],
  responseTrailers: ['TrailersResponse', 6],
  immediateResponse: ['ImmediateResponse', 7],
} as const;

const MUTATIONS = { streamedResponse: ['StreamedBodyResponse', 3] } as const;

const extProc = {
  ExternalProcessor: {
    methods: {
      Process: {
        requestType: 'ProcessingRequest',
        requestStream: true,
        responseType: 'ProcessingResponse',
        responseStream: true,
      },
    },
  },
  ProcessingRequest: message(
    {
      ...REQUESTS,
      metadataContext: ['Metadata', 8],
      observabilityMode: ['bool', 10],
      protocolConfig: ['ProtocolConfiguration', 11],
    },
    { request: Object.keys(REQUESTS) },
  ),
  /** Modes are BodyMode's; an enum and an int32 are the same on the wire. */
  ProtocolConfiguration: message({ requestBodyMode: ['int32', 1], responseBodyMode: ['int32', 2] }),
  HttpHeaders: message({ headers: ['HeaderMap', 1], endOfStream: ['bool', 3] }),
  HttpBody: message({ body: ['bytes', 1], endOfStream: ['bool', 2] }),
  HttpTrailers: message({}),
  ProcessingResponse: message(
    { ...RESPONSES, dynamicMetadata: ['Struct', 8] },
    { response: Object.keys(RESPONSES) },
  ),
  /** HeadersResponse and BodyResponse, which are alike. */
  CommonAnswer: message({ response: ['CommonResponse', 1] }),
  CommonResponse: message({
    headerMutation: ['HeaderMutation', 2],
    bodyMutation: ['BodyMutation', 3],
    clearRouteCache: ['bool', 5],
  }),
  TrailersResponse: message({}),
  ImmediateResponse: message({
    status: ['HttpStatus', 1],
    headers: ['HeaderMutation', 2],
    body: ['bytes', 3],
    details: ['string', 5],
  }),
  HttpStatus: message({ code: ['int32', 1] }),
  HeaderMutation: list('setHeaders', 'HeaderValueOption', 1),
  BodyMutation: message(MUTATIONS, { mutation: Object.keys(MUTATIONS) }),
  StreamedBodyResponse: message({ body: ['bytes', 1], endOfStream: ['bool', 2] }),
  HeaderMap: list('headers', 'HeaderValue', 1),
  HeaderValue: message({ key: ['string', 1], value: ['string', 2], rawValue: ['bytes', 3] }),
  HeaderValueOption: message({ header: ['HeaderValue', 1], appendAction: ['int32', 3] }),
  Metadata: map('filterMetadata', 'Struct', 1),
  Struct: map('fields', 'Value', 1),
  Value: message(
    { stringValue: ['string', 3], structValue: ['Struct', 5], listValue: ['ListValue', 6] },
    { kind: ['stringValue', 'structValue', 'listValue'] },
  ),
  ListValue: list('values', 'Value', 1),
};

const health = {
  Health: { methods: { Check: { requestType: 'HealthCheckRequest', responseType: 'HealthCheckResponse' } } },
  HealthCheckRequest: message({ service: ['string', 1] }),
  HealthCheckResponse: message({ status: ['int32', 1] }),
};

const nest = (names: readonly string[], inner: object): object =>
  names.reduceRight((nested, name) => ({ nested: { [name]: nested } }), { nested: inner });

export const EXT_PROC_SERVICE = 'envoy.service.ext_proc.v3.ExternalProcessor';

/** The services as gRPC takes them. Absent fields stay absent; of a oneof, its own name says which field is set. */
export function extProcService(): { Process: MethodDefinition<ProcessingRequest, ProcessingResponse> } {
  const loaded = fromJSON(nest(['envoy', 'service', 'ext_proc', 'v3'], extProc), { oneofs: true });
  return loaded[EXT_PROC_SERVICE] as never;
}

export function healthService(): { Check: MethodDefinition<HealthCheckRequest, HealthCheckResponse> } {
  return fromJSON(nest(['grpc', 'health', 'v1'], health))['grpc.health.v1.Health'] as never;
}

/** ProcessingMode.BodySendMode: how the data plane shows a body. */
export const BodyMode = { none: 0, streamed: 1, buffered: 2, bufferedPartial: 3, fullDuplex: 4 } as const;
/** HeaderValueOption.HeaderAppendAction. */
export const OVERWRITE_IF_EXISTS_OR_ADD = 2;
export const ServingStatus = { serving: 1, notServing: 2 } as const;

export interface HeaderValue {
  key?: string;
  /** One of the two; which one is a matter of the data plane's version. */
  value?: string;
  rawValue?: Buffer;
}

export interface HttpHeaders {
  headers?: { headers?: HeaderValue[] };
  endOfStream?: boolean;
}

export interface HttpBody {
  body?: Buffer;
  endOfStream?: boolean;
}

export interface Struct {
  fields?: Record<string, Value>;
}

export interface Value {
  stringValue?: string;
  structValue?: Struct;
  listValue?: { values?: Value[] };
}

export interface ProcessingRequest {
  request?: keyof typeof REQUESTS;
  requestHeaders?: HttpHeaders;
  responseHeaders?: HttpHeaders;
  requestBody?: HttpBody;
  responseBody?: HttpBody;
  requestTrailers?: object;
  responseTrailers?: object;
  metadataContext?: { filterMetadata?: Record<string, Struct> };
  observabilityMode?: boolean;
  /** In the first message; missing where the data plane is too old to send it. */
  protocolConfig?: { requestBodyMode?: number; responseBodyMode?: number };
}

export interface HeaderMutation {
  setHeaders: { header: { key: string; rawValue: Buffer }; appendAction: number }[];
}

export interface CommonAnswer {
  response: {
    headerMutation?: HeaderMutation;
    bodyMutation?: { streamedResponse: { body: Buffer; endOfStream: boolean } };
    clearRouteCache?: boolean;
  };
}

/** One of its fields is set, and `dynamicMetadata` beside it. */
export interface ProcessingResponse {
  requestHeaders?: CommonAnswer;
  responseHeaders?: CommonAnswer;
  requestBody?: CommonAnswer;
  responseBody?: CommonAnswer;
  requestTrailers?: object;
  responseTrailers?: object;
  immediateResponse?: {
    status: { code: number };
    headers: HeaderMutation;
    body: Buffer;
    details: string;
  };
  dynamicMetadata?: Struct;
}

export interface HealthCheckRequest {
  service?: string;
}

export interface HealthCheckResponse {
  status: number;
}
