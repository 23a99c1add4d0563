// Calls a service with the official packages for Node.js. A line of JSON in, {id, client, action, params}; a line out, {id, answer} or
// {id, error}. Several may be under way at once. Arguments: host:port, access key id, secret.
'use strict';

const readline = require('readline');
const RPC = require('@alicloud/rpc-client');
const KMS = require('@alicloud/kms20160120');
const Core = require('@alicloud/pop-core');

const [host, accessKeyId, accessKeySecret] = process.argv.slice(2);
const config = new RPC.Config({ endpoint: host, protocol: 'http', type: 'access_key', accessKeyId, accessKeySecret });
const kms = new KMS.default(config);
const core = new Core({ endpoint: `http://${host}`, apiVersion: '2016-01-20', accessKeyId, accessKeySecret });

const lower = (name) => name.charAt(0).toLowerCase() + name.slice(1);
const upper = (name) => name.charAt(0).toUpperCase() + name.slice(1);

// {KeyId: …} -> {keyId: …}, by the names that the model itself gives.
function model(name, params) {
  const Model = KMS[name];
  const wire = Model.names();
  const given = {};
  for (const [property, wireName] of Object.entries(wire)) {
    if (!(wireName in params)) continue;
    const value = params[wireName];
    given[property] = wireName === 'Tag' ? value.map((tag) => model(`${name}Tag`, tag)) : value;
  }
  const unknown = Object.keys(params).filter((key) => !Object.values(wire).includes(key));
  if (unknown.length) throw new Error(`${name} has no ${unknown}`);
  return new Model(given);
}

const clients = {
  kms: (action, params) => {
    const method = kms[lower(action)];
    return KMS[`${action}Request`] ? method.call(kms, model(`${action}Request`, params)) : method.call(kms);
  },
  offers: () => ({ actions: Object.getOwnPropertyNames(KMS.default.prototype).map(upper) }),
  get: (action, params) => core.request(action, params, { method: 'GET' }),
  post: (action, params) => core.request(action, params, { method: 'POST' }),
};

const plain = (value) => (value && value.toMap ? value.toMap() : value);

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const { id, client, action, params } = JSON.parse(line);
  Promise.resolve()
    .then(() => clients[client](action, params))
    .then(
      (answer) => ({ id, answer: plain(answer) }),
      (error) => ({ id, error: { code: error.code || '', message: error.message, status: (error.data || {}).HttpStatus } }),
    )
    .then((said) => console.log(JSON.stringify(said)));
});
