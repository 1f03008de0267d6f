// The gateway's API as the page uses it.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function checked(response) {
  if (response.ok) return response;
  let message = `the server answers with status ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not the gateway's own answer
  }
  throw new ApiError(message, response.status);
}

/** Return the model's entry: its `id` and `max_model_len`. Throws `ApiError`. */
export async function model(key) {
  const response = await checked(await fetch("/v1/models", { headers: headers(key) }));
  return (await response.json()).data[0];
}

/** Yield the events of a streamed chat completion. Throws `ApiError`, also for an error in the stream. */
export async function* chat(body, key, signal) {
  const options = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  const response = await checked(await fetch("/v1/chat/completions", options));
  for await (const event of events(response.body)) {
    if (event.error) throw new ApiError(event.error.message);
    yield event;
  }
}

/** Yield the JSON of each server-sent event until [DONE]. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ApiError("the answer broke off");
      rest += value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
