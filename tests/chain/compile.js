// node compile.js TOOLS FILE.sol: writes {contract: {code, selectors}} as JSON.
const fs = require('fs');
const path = require('path');
const [tools, file] = process.argv.slice(2);
const solc = require(path.join(tools, 'node_modules', 'solc'));
const input = {
  language: 'Solidity',
  sources: { [path.basename(file)]: { content: fs.readFileSync(file, 'utf8') } },
  settings: {
    evmVersion: 'paris',
    optimizer: { enabled: true },
    outputSelection: { '*': { '*': ['evm.bytecode.object', 'evm.methodIdentifiers'] } },
  },
};
const output = JSON.parse(solc.compile(JSON.stringify(input)));
const errors = (output.errors || []).filter((one) => one.severity === 'error');
if (errors.length > 0) {
  console.error(errors.map((one) => one.formattedMessage).join('\n'));
  process.exit(1);
}
const result = {};
for (const [name, one] of Object.entries(output.contracts[path.basename(file)])) {
  result[name] = { code: one.evm.bytecode.object, selectors: one.evm.methodIdentifiers };
}
console.log(JSON.stringify(result));
