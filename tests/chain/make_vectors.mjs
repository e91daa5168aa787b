// Writes tests/unit/auth/chain_vectors.hpp with an encoder that is not ours: ethers 6.
//   npm install --prefix /some/where --ignore-scripts ethers@6.17.0
//   node make_vectors.mjs /some/where/node_modules/ethers/lib.esm/index.js > ../unit/auth/chain_vectors.hpp
import path from 'node:path';
const { AbiCoder, Interface } = await import(path.resolve(process.argv[2]));

const tuple = '(address appId, bytes32 composeHash, address instanceId, bytes32 deviceId, bytes32 mrAggregated, bytes32 mrSystem, ' +
  'bytes32 osImageHash, string tcbStatus, string[] advisoryIds) boot';
const kms = new Interface([`function isAppAllowed(${tuple}) view returns (bool, string)`,
  `function isKmsAllowed(${tuple}) view returns (bool, string)`, 'function gatewayAppId() view returns (string)',
  'function appImplementation() view returns (address)']);
const h = (pair, bytes) => pair.repeat(bytes);
const full = { appId: h('1f', 20), composeHash: h('2e', 32), instanceId: h('3d', 20), deviceId: h('4c', 32), mrAggregated: h('5b', 32),
  mrSystem: h('6a', 32), osImageHash: h('79', 32), tcbStatus: 'UpToDate', advisoryIds: [] };
const counting = { ...full };
let next = 1;
for (const key of ['appId', 'composeHash', 'instanceId', 'deviceId', 'mrAggregated', 'mrSystem', 'osImageHash']) {
  const size = full[key].length / 2;
  counting[key] = Array.from({ length: size }, () => (next++ % 256).toString(16).padStart(2, '0')).join('');
}
const questions = [
  ['app', 'no advisory', full],
  ['kms', 'no advisory', full],
  ['app', 'every byte another one', counting],
  ['app', 'one advisory', { ...full, advisoryIds: ['INTEL-SA-00837'] }],
  ['kms', 'three advisories of different lengths', { ...full, advisoryIds: ['A', 'INTEL-SA-00837', 'x'.repeat(64)] }],
  ['app', 'an empty advisory among others', { ...full, advisoryIds: ['', 'INTEL-SA-00614', ''] }],
  ['app', 'empty status', { ...full, tcbStatus: '' }],
  ['app', 'a status of exactly one word', { ...full, tcbStatus: 's'.repeat(32) }],
  ['kms', 'a status of one word and a byte', { ...full, tcbStatus: 's'.repeat(33) }],
  ['app', 'what may be empty is empty', { ...full, instanceId: '', mrSystem: '', osImageHash: '' }],
  ['app', 'zeros at both ends', { ...full, appId: '00' + h('11', 18) + '00', composeHash: '00' + h('22', 30) + '00' }],
];
const size = { appId: 20, composeHash: 32, instanceId: 20, deviceId: 32, mrAggregated: 32, mrSystem: 32, osImageHash: 32 };
const padded = (boot) => ({ ...boot, ...Object.fromEntries(Object.entries(size).map(([k, n]) => [k, '0x' + boot[k].padStart(2 * n, '0')])) });

const coder = AbiCoder.defaultAbiCoder();
const rulings = [[true, ''], [false, 'App not registered'], [false, 'r'.repeat(32)], [false, 'r'.repeat(33)], [true, 'fine'],
  [false, 'n\u00f6 "quoted" \n']];
const strings = ['', 'gw', 'g'.repeat(31), 'g'.repeat(32), '0x' + h('ab', 20), 'g'.repeat(300)];

const text = (s) => '"' + [...Buffer.from(s)].map((b) => (b < 0x20 || b > 0x7e ? '\\' + b.toString(8).padStart(3, '0') : b === 34 || b === 92 ? '\\' + String.fromCharCode(b) : String.fromCharCode(b))).join('') + '"';
const hex = (s, indent) => {
  const digits = s.replace(/^0x/, '');
  const lines = digits.match(/.{1,96}/g) || [''];
  return lines.map((line) => `${indent}"${line}"`).join('\n');
};
const out = ['#pragma once', '#include <string_view>', '', '// Written by tests/chain/make_vectors.mjs with ethers 6: not to be edited.',
  'namespace chain_vectors', '{', '', 'struct Question', '{', '    std::string_view kind;', '    std::string_view about;',
  '    std::string_view boot; ///< the body of the request', '    std::string_view calldata;', '};', '',
  'inline constexpr Question questions[] = {'];
for (const [kind, about, boot] of questions) {
  const body = JSON.stringify({ teeVariant: 'dstack-tdx', keyProviderInfo: '', ...boot });
  out.push(`    {"${kind}", "${about}",`, `     R"(${body})",`,
    hex(kms.encodeFunctionData(kind === 'app' ? 'isAppAllowed' : 'isKmsAllowed', [padded(boot)]), '     ') + '},');
}
out.push('};', '', 'struct Ruling', '{', '    bool allowed;', '    std::string_view reason;', '    std::string_view data;', '};', '',
  'inline constexpr Ruling rulings[] = {');
for (const [allowed, reason] of rulings) {
  out.push(`    {${allowed}, ${text(reason)},`, hex(coder.encode(['bool', 'string'], [allowed, reason]), '     ') + '},');
}
out.push('};', '', 'struct Text', '{', '    std::string_view text;', '    std::string_view data;', '};', '', 'inline constexpr Text texts[] = {');
for (const one of strings) { out.push(`    {${text(one)},`, hex(coder.encode(['string'], [one]), '     ') + '},'); }
const address = h('c5', 20);
out.push('};', '', `inline constexpr Text address{"${address}",`, hex(coder.encode(['address'], ['0x' + address]), '    ') + '};', '');
const revert = new Interface(['error Error(string)', 'error Panic(uint256)']);
out.push('inline constexpr Text reverts[] = {',
  `    {"closed on sundays",`, hex(revert.encodeErrorResult('Error', ['closed on sundays']), '     ') + '},',
  `    {"panic 17",`, hex(revert.encodeErrorResult('Panic', [17]), '     ') + '},', '};', '');
for (const name of ['isAppAllowed', 'isKmsAllowed', 'gatewayAppId', 'appImplementation']) {
  out.push(`inline constexpr std::string_view selector_of_${name} = "${kms.getFunction(name).selector.slice(2)}";`);
}
out.push('', '} // namespace chain_vectors');
console.log(out.join('\n'));
