// The API's page: what /openapi.json says, as tables.

const element = (name, ...children) => {
  const node = document.createElement(name);
  node.append(...children);
  return node;
};

const LARGE = 1e9; // no limit that a reader cares for

const spec = await (await fetch("/openapi.json")).json();
const resolve = (schema) => (schema.$ref ? spec.components.schemas[schema.$ref.split("/").pop()] : schema);

function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).filter((k) => k !== "null").join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" or ");
  if (schema.type === "array") return `list of ${schema.items ? kind(schema.items) || "anything" : "anything"}`;
  return schema.type ?? "";
}

function range(schema) {
  const parts = [schema, ...(schema.anyOf ?? [])];
  const found = (key) => parts.map((part) => part[key]).find((value) => value !== undefined);
  const low = found("minimum") ?? found("exclusiveMinimum"), high = found("maximum");
  if (low !== undefined && high < LARGE) return `${low} to ${high}`;
  if (low > -LARGE) return `from ${low}`;
  return "";
}

function table(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, one]) => {
    const wanted = schema.required?.includes(name) ? "required" : "";
    return element("tr", element("td", element("code", name)), element("td", kind(one)), element("td", [wanted, range(one)].filter(Boolean).join(", ")));
  });
  const head = element("tr", ...["key", "type", "bounds"].map((text) => element("th", text)));
  const scroll = element("div", element("table", element("thead", head), element("tbody", ...rows)));
  scroll.className = "scroll";
  return scroll;
}

for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const name = element("span", method.toUpperCase());
    name.className = "method";
    const section = element("section", element("h2", name, element("code", path)), element("p", operation.summary));
    const content = operation.requestBody?.content["application/json"];
    if (content) section.append(table(resolve(content.schema)));
    document.getElementById("operations").append(section);
  }
}
